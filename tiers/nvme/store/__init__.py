"""One store: its directory, its namespaces, and how it is opened, rebuilt and closed."""
