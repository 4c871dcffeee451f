"""The library: an offload engine for a server's KV cache.

Each name is imported when it is first asked for: the parts of this package that the command line uses need
no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chain import ChainStats
    from .engine import OffloadEngine
    from .events import ChainEvent
    from .job import Job
    from .loaded import Loaded

__all__ = ["ChainEvent", "ChainStats", "Job", "Loaded", "OffloadEngine"]

_HOMES = {
    "ChainEvent": "events",
    "ChainStats": "chain",
    "Job": "job",
    "Loaded": "loaded",
    "OffloadEngine": "engine",
}
_ONLY_WHOLE = ("torch", "numpy")  # what kvtier-core leaves to kvtier


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in _ONLY_WHOLE:
            raise
        raise ImportError(
            f"kvtier.engine.{name} needs {error.name}: pip install kvtier "
            "(kvtier-core alone has the command line)",
            name=error.name,
        ) from error
