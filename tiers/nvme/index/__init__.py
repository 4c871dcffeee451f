"""The index: where every chunk lies, in LMDB."""
