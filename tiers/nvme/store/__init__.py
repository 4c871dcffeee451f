"""One store: its directory and namespaces; opens, rebuilds and closes it."""
