"""How large a server's KV is, by its model alone, and how much of it each tier of a document holds."""
