"""The index, in LMDB: where every chunk lies."""
