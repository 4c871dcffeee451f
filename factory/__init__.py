"""From the tier-config document to a chain of tiers, and the plugins for servers.

What another package needs to bring a tier of its own is handed on from here, each name imported when it is
first asked for: importing this package alone stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import (
        Spec,
        TierConfig,
        TierContext,
        TierFactory,
        create_spec,
        register_spec,
        register_tier,
    )

__all__ = [
    "Spec",
    "TierConfig",
    "TierContext",
    "TierFactory",
    "create_spec",
    "register_spec",
    "register_tier",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import registry

    return getattr(registry, name)
