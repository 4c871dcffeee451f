"""The NVMe tier: a bounded, checksummed log of chunks on a local drive."""
