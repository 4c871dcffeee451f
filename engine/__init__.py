"""The library: an offload engine for a server's KV cache."""

from .chain import ChainStats
from .engine import OffloadEngine
from .job import Job

__all__ = ["ChainStats", "Job", "OffloadEngine"]
