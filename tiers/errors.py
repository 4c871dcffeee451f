"""Errors that reach a caller; corruption and misses are values instead, see `base.Failure`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from .base import ChunkKey, Failure

KEYS_NAMED_MAX = 1000  # by an error; more say nothing to a person


class KvtierError(Exception):
    """Base of every error that kvtier raises on purpose."""


class ConfigError(KvtierError, ValueError):
    """The user's input is wrong.

    The message names the place in the document (``tiers[2].capacity``), what is wrong there and what
    was probably meant.

    Attributes:
        path: the JSON path of the wrong field, empty for the document as a whole.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class TierError(KvtierError):
    """The world failed a tier as a whole: a drive, a mapping, a device.

    Attributes:
        tier: name of the tier that failed.
        failure: what the keys of the call that met it fail with.
    """

    failure = Failure.IO_ERROR

    def __init__(self, tier: str, message: str) -> None:
        super().__init__(f"{tier}: {message}")
        self.tier = tier


class TierUnavailable(TierError):
    """A tier cannot start: its path, memory or device is not usable."""


class IdentityMismatch(TierError):
    """A namespace on the drive was written with other identity fields than the ones given now."""


class NotDurable(TierError):
    """Stored chunks are in no tier below: a tier failed to take them, or they left their slots too soon.

    Attributes:
        keys: the first of them.
        reasons: how many there are, by reason.
        told: to be called once this has reached whoever flushed: he is not told of the same chunks again.
    """

    def __init__(
        self, tier: str, keys: Iterable[ChunkKey], reasons: Mapping[Failure, int], told: Callable[[], None]
    ) -> None:
        by_reason = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        count = sum(reasons.values())
        super().__init__(
            tier, f"{count} chunks that were stored since the last flush are not in it ({by_reason})"
        )
        self.keys = tuple(islice(keys, KEYS_NAMED_MAX))
        self.reasons = dict(reasons)
        self.told = told


class ClosedError(KvtierError, RuntimeError):
    """The engine or tier was closed; nothing was done."""
