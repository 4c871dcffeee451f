"""How the index fails: damaged, full, starved, or held by somebody else for too long."""

from __future__ import annotations

from ...base import Failure
from ...errors import TierError


class IndexDamaged(TierError):
    """The index is not readable, or not this store's."""


class IndexFull(TierError):
    """The index may not grow further; its store has to evict chunks first."""


class IndexStarved(TierError):
    """No reader slot or no memory was left for a call. That passes; what is stored is as good as before."""

    failure = Failure.NO_RESOURCES


class IndexBusy(TierError):
    """Another process or thread holds the index for writing and does not let go; nothing was changed."""
