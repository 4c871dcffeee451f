"""Looks at a store, removes from it, checks and repairs it; used by the command line alone."""
