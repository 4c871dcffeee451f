"""What an engine tells monitoring: the table of all metrics, and `EngineCollector`, which Prometheus scrapes.

The collector is imported when it is first asked for: it needs `prometheus_client`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collector import EngineCollector

__all__ = ["EngineCollector"]


def __getattr__(name: str) -> Any:
    if name != "EngineCollector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(".collector", __name__).EngineCollector
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise ImportError(
            "EngineCollector needs prometheus_client: pip install 'kvtier-core[metrics]'",
            name=error.name,
        ) from error
