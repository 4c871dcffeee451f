"""The bytes on the drive: segments, tables, checksums."""
