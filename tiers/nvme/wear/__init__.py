"""What a store has written to its drive, and what it may still write."""
