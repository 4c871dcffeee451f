"""Appends to the log: batches placed, written by lanes, committed together.

The life of one append: every batch takes its place in the open segment; the lanes write the pieces of all
batches, and whichever lane finishes a batch's last piece writes its table; then one transaction, on the lane
that leads, makes the extents visible. Whatever happens in between, each batch is completed once, so that its
segment can be sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice

from ...base import Buffer, ChunkKey, Failure
from ...errors import TierError
from ..format.codec import Entry
from ..index.environment import Index, IndexBusy, IndexFull
from ..index.ledger import Ledger
from ..index.order import Since, is_outdated, next_order, note
from ..index.records import Extent
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES
from ..io.clock import now_s
from ..io.lanes import Lanes
from ..io.refusal import failure_of
from ..wear.record import add_written
from .ahead import Ahead
from .batch import PlacedBatch
from .chunks import Removals, Target
from .durability import Durability
from .events import Events
from .lifecycle import is_open
from .room import index_is_tight
from .segments import Segments
from .tail import Tail

_NO_BYTES = memoryview(b"")
REORDERS_MAX = 8  # of one append: who meets so many removals in a row is shed


Accept = Callable[[ChunkKey, Extent, Extent | None], Extent | None]
"""Called in the committing transaction with a key, where it was written, and where the index has it so far.
Returns the extent to put, or None to leave things as they are."""


class Appender:
    """Appends chunks and removals to the tail of the log, and makes them visible.

    One event loop. Cancellation: a cancelled append returns once no thread reads its buffers; what it had
    written is either committed as a whole or nothing.
    """

    def __init__(
        self,
        lanes: Lanes,
        segments: Segments,
        index: Index,
        ahead: Ahead,
        durability: Durability,
        tail: Tail,
        events: Events,
    ) -> None:
        self._lanes, self._segments, self._index = lanes, segments, index
        self._ahead, self._durability, self._tail, self._events = ahead, durability, tail, events
        # Mutable state, changed on the loop only.
        self.io_errors = 0

    async def append(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        accept: Accept,
        *,
        since: Since | None = None,
    ) -> dict[ChunkKey, Failure]:
        """Write the chunks and commit what `accept` takes; returns why the others failed.

        Where there is no room it waits for some, unless the chunks are carried: those have a `since`. It is
        when they were last known to be wanted: a removal after that counts, were the index to be rebuilt. No
        segment that was opened after it takes a chunk, because such a removal is not kept as long as that
        segment; what has no place for this reason is dropped.
        """
        failed: dict[ChunkKey, Failure] = {}
        # Before anything is written: what the index cannot take in is not worth a byte.
        why = await self._index_room() if since is None else None
        while chunks and why is None:
            placed, why = await self._append_some(target, chunks, accept, failed, since=since)
            if why is Failure.IO_ERROR and any(key not in failed for key, _ in chunks[:placed]):
                why = None  # the drive takes writes again: so the rest may have another segment
            chunks = chunks[placed:]
        failed.update((key, why) for key, _ in chunks if why is not None)
        return failed

    async def _append_some(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        accept: Accept,
        failed: dict[ChunkKey, Failure],
        *,
        since: Since | None,
    ) -> tuple[int, Failure | None]:
        """Append as many leading chunks as have a place; returns how many, and why the others have none."""
        batches: list[PlacedBatch] = []
        try:
            placed, why = await self._tail.place(target, chunks, batches, wait=since is None, since=since)
            if batches:
                failed.update(await self._written(target, batches, accept, ordered=since is not None))
        finally:
            for batch in batches:
                batch.segment.refused |= batch.error is not None
                self._tail.complete(batch.segment, batch.table)
        return placed, why if placed < len(chunks) else None

    async def append_removals(self, target: Target, keys: Sequence[ChunkKey], order: int) -> None:
        """Append removals of keys that have left the index, so that no rebuild brings them back.

        `order` was given out in the transaction that they left it in. The next `flush` raises what could not
        be written.
        """
        with self._index.read() as txn:
            opened = txn.number("opened")  # in none that is opened later do they lie
        removed_s = now_s()
        entries = tuple(Entry(key, opened, 0, 0, removed_s) for key in keys)
        removals = Removals(target.namespace, target.scope, order, entries)
        if await self.write_removals([removals], wait=True):
            self._durability.not_durable(
                "removals", TierError("nvme", "there is no segment to write them to")
            )

    async def write_removals(self, removals: Sequence[Removals], *, wait: bool) -> Sequence[Removals]:
        """Append removals, waiting for room if it may; returns those for which there is no room.

        The next `flush` raises what could not be written.
        """
        batches: list[PlacedBatch] = []
        calls: list[Callable[[], None]] = []
        left: list[Removals] = []
        try:
            for one in removals:
                placed_count, its_calls = await self._placed(one, batches, wait=wait)
                calls += its_calls
                if placed_count < len(one.entries):
                    left.append(one._replace(entries=one.entries[placed_count:]))
            if calls:
                await self._lanes.store(calls, then=lambda: None)
            for batch in batches:
                if batch.error is not None:
                    self._durability.not_durable("removals", batch.error)
        finally:
            for batch in batches:
                self._tail.complete(batch.segment, batch.table)
        return left

    async def _placed(
        self, removals: Removals, batches: list[PlacedBatch], *, wait: bool
    ) -> tuple[int, Sequence[Callable[[], None]]]:
        entries, first = removals.entries, len(batches)
        chunks = [(entry.key, _NO_BYTES) for entry in entries]
        since = Since(removals.order, None)
        placed_count, _ = await self._tail.place(
            removals.target, chunks, batches, wait=wait, since=since, pieces=False
        )
        rest = iter(entries)
        return placed_count, [
            partial(batch.write_table, tuple(islice(rest, batch.placement.chunks)), removals=True)
            for batch in batches[first:]
        ]

    async def _index_room(self) -> Failure | None:
        try:
            return await self._ahead.index_room()
        except TierError as error:
            self.io_errors += 1
            self._events.failed(f"{error}")
            return Failure.IO_ERROR

    def retire_older(self, opened: int) -> None:
        """Append no more to the open segment if it was opened before this."""
        self._tail.retire_older(opened)

    # Writing and committing.

    async def _written(
        self, target: Target, batches: Sequence[PlacedBatch], accept: Accept, *, ordered: bool
    ) -> Mapping[ChunkKey, Failure]:
        """Write the batches and commit them; returns why some keys are not there."""
        calls = [call for batch in batches for call in batch.calls()]
        lost, why = [], Failure.DROPPED
        try:
            lost = await self._lanes.store(
                calls, then=partial(self._commit, target, batches, accept, ordered)
            )
        except IndexFull as error:
            lost, why = _written_keys(batches), Failure.INDEX_FULL
            self._events.failed(f"{error}")
        except IndexBusy:
            lost, why = _written_keys(batches), Failure.DROPPED
        except TierError as error:
            self.io_errors += 1
            self._events.failed(f"{error}")
            lost, why = _written_keys(batches), Failure.IO_ERROR
        failed = dict.fromkeys(lost, why)
        for batch in batches:
            if batch.error is not None:
                self.io_errors += 1
                failed.update((key, failure_of(batch.error)) for key in batch.missing_keys)
                self._events.failed(f"segment {batch.segment.name.segment} was not written: {batch.error}")
        return failed

    def _commit(
        self, target: Target, batches: Sequence[PlacedBatch], accept: Accept, ordered: bool
    ) -> list[ChunkKey]:
        """On a lane: make visible what was written. Returns the keys that may not be any more."""
        self._segments.files.reached("data written")
        for _ in range(REORDERS_MAX):
            written = [batch for batch in batches if batch.entries]
            if not written:
                return []
            self._segments.files.reached("before commit")
            refused = self._index.write(partial(self._put, target, written, accept, ordered))
            if refused is not None:
                self._segments.files.reached("committed")
                return refused
            later = self._index.write(next_order)
            self._tail.order_from(later)
            for batch in written:
                batch.reorder(later)
        return _written_keys(batches)

    def _put(
        self,
        target: Target,
        batches: Sequence[PlacedBatch],
        accept: Accept,
        ordered: bool,
        txn: Transaction,
    ) -> list[ChunkKey] | None:
        """Put what is accepted; None where a removal has come since the batches took their order."""
        if not ordered and any(is_outdated(txn, batch.order) for batch in batches):
            return None
        if index_is_tight(txn):
            raise IndexFull("nvme", "the index may not grow further")
        add_written(txn, sum(batch.blocks_count for batch in batches) * BLOCK_BYTES)
        ledger = Ledger(txn)
        if not ledger.in_force(target.scope):
            return _written_keys(batches)
        refused: list[ChunkKey] = []
        for batch in batches:
            name = batch.segment.name
            if not is_open(ledger.segment(name.segment), name):
                # Its file was removed under us, and somebody has noticed.
                batch.segment.lost = True
                refused += batch.written_keys
                continue
            for entry in batch.entries:
                before = ledger.extent(target.scope, entry.key)
                place = Extent(name.segment, name.generation, *entry[1:], 0, 0)
                extent = accept(entry.key, place, before)
                if extent is not None:
                    ledger.put(target.scope, entry.key, before, extent)
            _raise_end(ledger, batch)
        ledger.close()
        note(txn, max(batch.order for batch in batches), removal=False)
        return refused


def _raise_end(ledger: Ledger, batch: PlacedBatch) -> None:
    number = batch.segment.name.segment
    segment = ledger.segment(number)
    assert segment is not None, "a claimed segment has a record"
    ledger.set_segment(number, segment._replace(end_block=max(segment.end_block, batch.end_block)))


def _written_keys(batches: Sequence[PlacedBatch]) -> list[ChunkKey]:
    return [key for batch in batches for key in batch.written_keys]
