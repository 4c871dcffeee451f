"""Removes chunks from a store on request, even while servers use it.

In each step its chunks are looked at again: what a server has read, stored anew or dropped since they were
chosen, and what does not fit any more, is left alone. Their room is given back as any other's, when a server
reclaims their segments. Removing itself makes no room, unless the list of what was removed
needs a segment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from ...base import ChunkKey
from ...errors import TierError
from ..format.checksum import ChunkChecksum
from ..index.ledger import Ledger
from ..index.order import record_removal
from ..index.records import NEVER, Extent
from ..index.transaction import Transaction
from ..io.lanes import Lanes
from ..log.budget import ONE_AT_NEED
from ..log.chunks import Target
from ..log.durability import Durability
from ..log.events import Events
from ..log.reclaim import Allowance
from ..periodic import Periodic
from ..roomkeeper import RoomKeeper
from ..store.frame import READ_S
from ..store.namespaces import NamespaceFile
from ..store.opening import Store
from ..wear.budget import NoBudget
from ..writing import Writing

logger = logging.getLogger(__name__)

KEEP_PERIOD_S = 1.0  # between two looks at the room, where nothing is needed
BATCH_CHUNKS = 512  # removed per call, so that servers' commits get their turn
DIGEST_PREFIX_MIN = 8  # hex digits: two namespaces that share them by chance are one pair in billions


@dataclass(frozen=True, slots=True)
class Enough:
    """How much to remove of what meets the conditions; no chunk is begun once so much is chosen.

    Attributes:
        least_recently_used: those first whose last use is longest ago, to the grain of a segment's fill; one
            that was never used counts from when its segment was opened. Otherwise those first that have been
            stored for longest.
    """

    size_bytes: int
    least_recently_used: bool = False

    def age(self, extent: Extent, opened: int) -> tuple[int, ...]:
        """Sorts what is to go first before the rest; `opened` is of the extent's segment."""
        used = (extent.used_at or opened, int(extent.used_at != NEVER)) if self.least_recently_used else ()
        return (*used, extent.stored_s, opened, extent.block)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which chunks to remove: those that meet every condition that is given.

    Attributes:
        namespace: a label, or `DIGEST_PREFIX_MIN` hex digits or more of a digest; empty for all.
        key_prefix: what the key begins with.
        older_than_s: stored at least so many seconds ago.
        never_read: known to be never read back, nor used in another tier, since they were stored: a rebuild
            of the index forgets that.
        enough: where to stop; None to choose all of them.
    """

    namespace: str = ""
    key_prefix: bytes = b""
    older_than_s: float = 0.0
    never_read: bool = False
    enough: Enough | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chunks of one namespace that a selection names.

    Attributes:
        scope: the namespace's scope in which they are.
        after_s, before_s: they were stored after, and no later than, then.
        never_read: they were not read back.
    """

    digest: bytes
    file: NamespaceFile
    scope: int
    after_s: float
    before_s: float
    never_read: bool
    keys: tuple[ChunkKey, ...]
    size_bytes: int

    @property
    def label(self) -> str:
        return self.file.identity.label

    def takes(self, extent: Extent) -> bool:
        return self.after_s < extent.stored_s <= self.before_s and not (self.never_read and extent.hits)


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed from one namespace."""

    digest: bytes
    label: str
    chunks: int
    size_bytes: int


def choose(store: Store, selection: Selection) -> list[Chosen]:
    """Find the chunks that would be removed."""
    return list(_chosen(store, selection))


async def remove(store: Store, chosen: Chosen, progress: Callable[[int], None]) -> Removed:
    """Remove the chunks for good: neither a rebuild nor a power loss brings them back once this returns.

    Calls `progress` with each step's count. Cancellation: what was removed so far stays removed.

    Raises:
        TierError: the store cannot be used.
    """
    index, lanes, events = store.index, Lanes(), Events()
    writing = Writing.to(store, lanes, events, Allowance(1, 0), NoBudget())
    keeper = RoomKeeper(lanes, index, writing, _count_nothing, lambda: ONE_AT_NEED)
    keeping = Periodic(partial(_kept, keeper), lambda: KEEP_PERIOD_S)
    events.on_rolled(keeper.changed)
    events.on_rolled(keeping.wake)
    target = Target(chosen.digest, chosen.scope, ChunkChecksum(chosen.digest))
    chunks = size_bytes = 0
    try:
        for start in range(0, len(chosen.keys), BATCH_CHUNKS):
            forget = partial(_forget, chosen, chosen.keys[start : start + BATCH_CHUNKS])
            gone, order = await lanes.index(partial(index.write, forget))
            await writing.appender.append_removals(target, list(gone), order)
            chunks, size_bytes = chunks + len(gone), size_bytes + sum(gone.values())
            progress(len(gone))
        await _flush(writing.durability)
    finally:
        async with AsyncExitStack() as at_last:
            at_last.callback(lanes.close)
            at_last.push_async_callback(writing.durability.close)
            at_last.push_async_callback(writing.ahead.close)
            keeper.stop()
            await keeping.stop()
    return Removed(chosen.digest, chosen.label, chunks, size_bytes)


async def _count_nothing() -> None:
    """A tool reads no chunk."""


async def _kept(keeper: RoomKeeper) -> None:
    with suppress(OSError, TierError):  # who waits for room is told
        await keeper.keep()


async def _flush(durability: Durability) -> None:
    try:
        await durability.flush()
    except OSError as error:
        raise TierError("nvme", f"what was removed may come back after a power loss: {error}") from error


def _forget(chosen: Chosen, keys: Sequence[ChunkKey], txn: Transaction) -> tuple[dict[ChunkKey, int], int]:
    """Drop the extents of those keys that are still to be removed.

    Returns the keys with their lengths, and the removal's order.
    """
    record = txn.namespace(chosen.digest)
    if record is None or record.scope != chosen.scope:
        return {}, 0
    ledger, gone = Ledger(txn), {}
    for key in keys:
        extent = ledger.extent(chosen.scope, key)
        if extent is not None and chosen.takes(extent):
            ledger.forget(chosen.scope, key, extent)
            gone[key] = extent.length_bytes
    ledger.close()
    return gone, record_removal(txn, chosen.scope, gone) if gone else 0


def _chosen(store: Store, selection: Selection) -> Iterator[Chosen]:
    """What is chosen of each namespace that has some of it."""
    before_s = time.time() - selection.older_than_s
    files = store.directory.namespaces.read()
    with store.index.read() as txn:
        records = txn.namespaces()
        after_s = txn.number(READ_S) if selection.never_read else 0
        if after_s:
            logger.warning("nvme: the index was rebuilt; what was stored before may have been read: spared")
        found = []
        for digest in _named(records, files, selection.namespace):
            scope = records[digest].scope
            none = Chosen(digest, files[digest], scope, after_s, before_s, selection.never_read, (), 0)
            extents = txn.extents(scope, selection.key_prefix)
            found.append((none, {key: extent for _, key, extent in extents if none.takes(extent)}))
        if selection.enough is not None:
            opened = {number: segment.opened for number, segment in txn.segments().items()}
            found = _first(found, selection.enough, opened)
    for none, held in found:
        if held:
            size_bytes = sum(extent.length_bytes for extent in held.values())
            yield replace(none, keys=tuple(held), size_bytes=size_bytes)


_Found: TypeAlias = list[tuple[Chosen, dict[ChunkKey, Extent]]]


def _first(found: _Found, enough: Enough, opened: Mapping[int, int]) -> _Found:
    """What goes first of what was found, until it is enough; `opened` is by segment."""
    order = sorted(
        (enough.age(extent, opened.get(extent.segment, 0)), place, key)
        for place, (_, held) in enumerate(found)
        for key, extent in held.items()
    )
    first: _Found = [(none, {}) for none, _ in found]
    left_bytes = enough.size_bytes
    for _, place, key in order:
        if left_bytes <= 0:
            break
        first[place][1][key] = extent = found[place][1][key]
        left_bytes -= extent.length_bytes
    return first


def _named(records: Iterable[bytes], files: dict[bytes, NamespaceFile], name: str) -> list[bytes]:
    """The namespaces that `name` means: those of that label, and only if there are none, by digest."""
    digests = [digest for digest in records if digest in files]
    if not name:
        return digests
    labelled = [digest for digest in digests if files[digest].identity.label == name]
    if labelled or len(name) < DIGEST_PREFIX_MIN:
        return labelled
    return [digest for digest in digests if digest.hex().startswith(name.lower())]
