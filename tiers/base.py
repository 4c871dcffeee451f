"""The Tier protocol, and the values that cross it.

A tier keeps chunks by key. Batches are the unit: every call takes many keys, and says per key what
happened. A bad chunk is a miss, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from .histogram import Histogram

ChunkKey: TypeAlias = bytes
"""Opaque bytes that name a chunk; 1 to `KEY_BYTES_MAX` long."""

KEY_BYTES_MAX = 256  # far above any server's hash; what is left of LMDB's 511 bytes names the namespace

Buffer: TypeAlias = memoryview
"""One chunk's bytes in host memory: one-dimensional, contiguous, format "B". Slots are 4 KiB-aligned."""


class Failure(StrEnum):
    """Why one key of a batch did not succeed.

    `NO_SPACE` and `DROPPED` are nobody's fault: the tier has chosen. `DEVICE_FAILURES` say that it cannot.
    """

    MISSING = "missing"  # the tier does not have it, or not any more
    CORRUPT = "corrupt"  # its checksum did not match; the tier has deleted it
    NO_SPACE = "no_space"  # no room could be made within the tier's cap, or the file system is full
    DROPPED = "dropped"  # shed under load, rather than queued without bound
    INDEX_FULL = "index_full"  # there is room for its bytes, but none to note where they are
    IO_ERROR = "io_error"  # the device or file system refused
    GONE = "gone"  # the tier's directory or file was removed under it
    NOT_ALLOWED = "not_allowed"  # read-only file system, rights, a limit on the size of files
    NO_RESOURCES = "no_resources"  # no descriptor, memory or lock was left for it
    TIMEOUT = "timeout"  # it did not arrive within the deadline
    CLOSED = "closed"  # the tier was closed first


DEVICE_FAILURES = frozenset(
    {Failure.IO_ERROR, Failure.GONE, Failure.NOT_ALLOWED, Failure.NO_RESOURCES},
)
"""Where no key of a call succeeds and one fails like this, the tier does not work at the moment."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to each key of one store or load.

    Attributes:
        succeeded: keys that were stored or loaded, in the order they were given.
        failed: the others, each with its reason.
        is_sample: whether it says anything about the tier's health. False where something of this process
            or host was lacking for a moment, before the tier was asked.
    """

    succeeded: tuple[ChunkKey, ...] = ()
    failed: Mapping[ChunkKey, Failure] = field(default_factory=dict)
    is_sample: bool = True

    @staticmethod
    def of(keys: Sequence[ChunkKey], failed: Mapping[ChunkKey, Failure]) -> Outcome:
        """All of `keys` succeeded but those in `failed`."""
        return Outcome(tuple(key for key in keys if key not in failed), failed)


class RemoveReason(StrEnum):
    """Why a chunk left a tier."""

    EVICTED = "evicted"  # the tier needed the room
    CORRUPT = "corrupt"
    REQUESTED = "requested"  # someone asked for it
    INVALIDATED = "invalidated"  # the weights changed


@dataclass(frozen=True, slots=True)
class TierStats:
    """A tier's numbers at one moment.

    Attributes:
        chunks: chunks that a lookup would find now.
        used_bytes: bytes taken, in the unit that `capacity_bytes` caps.
        capacity_bytes: the cap; 0 where the tier has none of its own.
        counters: monotonic counts by name, names ending in their unit where it is not "times".
        gauges: further numbers of this moment, by name.
        parts: the numbers of its parts, by what names each for good, where it has several.
        histograms: how long calls took, by name.
    """

    chunks: int
    used_bytes: int
    capacity_bytes: int
    counters: Mapping[str, int] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, TierStats] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {
            "chunks": self.chunks,
            "used_bytes": self.used_bytes,
            "capacity_bytes": self.capacity_bytes,
            "counters": dict(self.counters),
            "gauges": dict(self.gauges),
            "histograms": {name: one.as_dict() for name, one in self.histograms.items()},
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
        }


@runtime_checkable
class Tier(Protocol):
    """One level of the chain.

    Threads: `lookup` and `stats` may be called from any thread and never wait for a drive; the
    coroutines run on one event loop. Buffers belong to the caller, who keeps them valid and untouched
    until the coroutine returns. A cancelled call leaves the tier consistent; it returns only once no
    thread or device touches its buffers any more. After `close` every key fails with `Failure.CLOSED`.
    """

    @property
    def name(self) -> str:
        """The tier's name in metrics, messages and results."""
        ...

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        """Say for each key whether a load would find it now.

        None is *not known yet*: the tier finds out in the background, and says so when it is asked again.
        """
        ...

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Keep each buffer's bytes under its key; a key that is already there succeeds at once."""
        ...

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Fill each buffer with its key's bytes; the buffer of a failed key holds nothing of use."""
        ...

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        """Forget the keys; unknown ones are ignored."""
        ...

    async def flush(self) -> None:
        """Return when everything stored so far is as durable as this tier makes it."""
        ...

    def stats(self) -> TierStats:
        """Return the tier's numbers."""
        ...

    async def close(self) -> None:
        """Finish what is under way and release everything; idempotent."""
        ...


# Optional abilities. Ask for one with `ability`, which looks behind wrappers.


@runtime_checkable
class Invalidates(Protocol):
    """A tier that outlives the process, and therefore has to be told when the weights change."""

    async def invalidate(self) -> None:
        """Return once no lookup finds anything stored before the call."""
        ...


@runtime_checkable
class Clears(Protocol):
    """A tier that can forget all chunks and keep new ones under the same identity: the weights are the same.

    One that cannot is invalidated instead.
    """

    async def clear(self) -> None:
        """Return once no lookup finds anything stored before the call, in no process."""
        ...


@runtime_checkable
class ReportsRemovals(Protocol):
    """A tier that evicts chunks on its own and reports them."""

    def watch(self, report: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        """Call `report`, on any thread and quickly, whenever chunks have left the tier."""
        ...


@runtime_checkable
class CountsUses(Protocol):
    """A tier that keeps longest what is used, and does not see that another tier serves it."""

    def used(self, keys: Sequence[ChunkKey]) -> None:
        """Note that another tier has served these chunks. Best effort; any thread, and never waits."""
        ...


@runtime_checkable
class ReportsProgress(Protocol):
    """A tier that says how much its device has moved, so that a queue is not taken for a hang."""

    @property
    def moved_bytes(self) -> int:
        """Bytes that the device has moved so far, for whatever call; any thread, never waits."""
        ...


@runtime_checkable
class GuardsItself(Protocol):
    """A tier of several parts, each behind a breaker: one around it would give up all parts for one."""

    def rename(self, name: str) -> None:
        """Take the name that the chain gives it, before anybody uses it."""
        ...


@runtime_checkable
class Divides(Protocol):
    """A tier of several parts that work side by side, each of which may hang alone.

    A call of several parts' keys returns when the last of them is through. Who asks each part with a call of
    its own waits for none that it does not need.
    """

    def divide(self, keys: Sequence[ChunkKey]) -> Sequence[Sequence[int]]:
        """The positions of the keys by the part that a call would ask now, each in one; never waits."""
        ...


@runtime_checkable
class Wrapper(Protocol):
    """A tier around another tier, which may have abilities that the wrapper does not repeat."""

    @property
    def wrapped(self) -> Tier: ...


A = TypeVar("A")


def ability(tier: Tier, wanted: type[A]) -> A | None:
    """Return the tier, or the first one behind its wrappers, that has the wanted ability; else None."""
    inner: object = tier
    while not isinstance(inner, wanted):
        if not isinstance(inner, Wrapper):
            return None
        inner = inner.wrapped
    return inner
