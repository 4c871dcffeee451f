"""What a store stands on: the file system, its mount, what it can do, and who owns the directory."""
