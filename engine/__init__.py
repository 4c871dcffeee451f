"""The library: an offload engine for a server's KV cache."""

from .chain import ChainStats
from .engine import OffloadEngine
from .events import ChainEvent
from .job import Job
from .loaded import Loaded

__all__ = ["ChainEvent", "ChainStats", "Job", "Loaded", "OffloadEngine"]
