"""Placement and movement: what is where, what each tier is owed, and what carries it there."""
