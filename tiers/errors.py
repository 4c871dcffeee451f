"""Errors that reach a caller; corruption and misses are values instead, see `base.Failure`."""

from __future__ import annotations

from .base import Failure


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


class ClosedError(KvtierError, RuntimeError):
    """The engine or tier was closed; nothing was done."""
