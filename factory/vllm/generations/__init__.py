"""One adapter for each generation of vLLM's plugin interface, and what they share."""
