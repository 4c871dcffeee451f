"""The bytes on the drive: the format of segments, and one file of it."""
