"""Where tiers are in vLLM's words: their medium, and whether it belongs to this machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload import base

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ReqContext

_MEDIUM: Any = getattr(base, "Medium", None)  # a string up to 0.26
CPU: Any = "CPU" if _MEDIUM is None else _MEDIUM.CPU
STORAGE: Any = "STORAGE" if _MEDIUM is None else _MEDIUM.STORAGE

_LOCALITY: Any = getattr(base, "Locality", None)  # from 0.26 on


def locality(is_own: bool) -> Any:
    """The locality of a tier. Where a tier of another package keeps its chunks is unknown."""
    return _LOCALITY.LOCAL if is_own and _LOCALITY is not None else None


def below(req_context: ReqContext, lower: Sequence[str], foreign: Collection[str]) -> Collection[str] | None:
    """Which of the tiers below the pinned one the request loads from; None for all.

    The pinned tier is not asked: as vLLM's own CPU tier, it serves every request.

    Args:
        lower: names of the tiers below.
        foreign: those of them that are of other packages.
    """
    tier_filter = getattr(req_context, "load_tier_filter", None)  # from 0.27 on
    if tier_filter is None or tier_filter is type(tier_filter).ALL:
        return None
    return [name for name in lower if tier_filter.allows(STORAGE, locality(name not in foreign))]
