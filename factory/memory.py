"""How much memory this process may use: what a percentage in the document is of."""

from ..tiers.pinned.memory import memory_limit_bytes

__all__ = ["memory_limit_bytes"]
