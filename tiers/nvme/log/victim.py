"""Empties the oldest segment, so that it can be used again. `lifecycle.py` says how this fits in."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ...base import ChunkKey
from ..format.codec import Batch, SegmentName
from ..format.segment_file import SegmentFile
from ..index.environment import Index
from ..index.ledger import Ledger
from ..index.records import Extent, Segment, SegmentState
from ..index.transaction import Transaction
from ..io.refusal import LeftOut
from .chunks import Live, Removals
from .events import Events
from .room import Room
from .segments import Segments, sync_open

FREE, OPEN, SEALED, RECLAIMING = SegmentState

FORGET_STEP_MAX = 512  # entries dropped per transaction, so that others' commits get their turn
FORGET_STEP_PAGES = 32  # one entry per so many pages of the index: a step must fit in while it is nearly full


class Victim(NamedTuple):
    """A segment being emptied: its record from before, and its file, None where that is gone."""

    number: int
    segment: Segment
    file: SegmentFile | None
    live: tuple[Live, ...]
    removals: tuple[Removals, ...] = ()  # to be written elsewhere before it is freed


class Victims:
    """Chooses and empties segments. Every method blocks; any thread, at the same time."""

    def __init__(self, segments: Segments, index: Index, room: Room, events: Events) -> None:
        self._segments, self._index, self._room, self._events = segments, index, room, events

    def begin(self) -> Victim | None:
        """Take the oldest segment that nobody appends to, and see what is in it."""
        victim = next(self._oldest(), None)
        if victim is None:
            return None
        self._segments.files.reached("reclaiming")
        if victim.file is None:
            return victim
        try:
            live, removals = self._contents(victim.file)
        except OSError:  # unreadable: what is in it is found in the index instead
            return victim
        except BaseException:
            self.abandon(victim)
            raise
        return victim._replace(live=live, removals=removals)

    def _oldest(self) -> Iterator[Victim]:
        """First what a dead process has begun to empty; among many that others append to, what is sealed."""
        left_out = LeftOut(self._events.failed)
        for states in ((RECLAIMING,), (OPEN, SEALED), (SEALED,)):
            for number, segment in self._room.oldest(*states):
                victim = left_out.tried(partial(self.take, number, segment.generation))
                if victim is not None:
                    yield victim
        left_out.raise_first()

    def take(self, number: int, generation: int) -> Victim | None:
        """Make this life of a segment a victim; None where it has ended, or somebody has claimed it.

        A free one that has lost its file is forgotten.
        """
        fd = self._segments.claim(number)
        if fd is None and self._segments.exists(number):
            return None
        with contextlib.ExitStack() as undo:
            if fd is not None:
                undo.callback(self._segments.files.close, fd)
            has_file = fd is not None
            before = self._index.write(lambda txn: _condemn(txn, number, generation, has_file=has_file))
            if before is None:
                return None
            undo.pop_all()
        file = None if fd is None else self._segments.file(fd, number, generation)
        return Victim(number, before, file, ())

    def _contents(self, file: SegmentFile) -> tuple[tuple[Live, ...], tuple[Removals, ...]]:
        batches = file.read_trailer()
        if batches is None:
            batches = list(file.sweep())
        with self._index.read() as txn:
            return tuple(_live(txn, file.name, batches)), tuple(_removals(txn, file.name, batches))

    def finish(self, victim: Victim) -> int:
        """Evict what is still in the segment and free it; returns how many chunks were evicted."""
        name = self._segments.name(victim.number, victim.segment.generation)
        try:
            forgotten = self._forget(name, [(live.scope, live.key) for live in victim.live])
            with self._index.read() as txn:
                left = txn.segment(victim.number)
                unlisted = left is not None and left.live_chunks > 0
            if unlisted:  # the segment did not list all that the index has in it
                with self._index.read() as txn:
                    rest = [(scope, key) for scope, key, extent in txn.extents() if _lies_in(extent, name)]
                forgotten += self._forget(name, rest)
            if victim.segment.state is RECLAIMING:
                # Whoever began may have carried chunks and ended before they were durable in their new place.
                sync_open(self._segments, self._index)
            self._segments.files.reached("emptied")
            self._index.write(lambda txn: self._free(txn, victim))
        finally:
            self.abandon(victim)
        self._events.freed(victim.live)
        return forgotten

    def abandon(self, victim: Victim) -> None:
        """Give up the claim; whoever reclaims next goes on with this segment."""
        if victim.file is not None:
            self._segments.files.close(victim.file.fd)

    def _forget(self, name: SegmentName, entries: list[tuple[int, ChunkKey]]) -> int:
        forgotten = 0
        with self._index.read() as txn:
            pages = txn.pages_max()
        step = max(16, min(FORGET_STEP_MAX, pages // FORGET_STEP_PAGES))
        for start in range(0, len(entries), step):
            part = entries[start : start + step]
            forgotten += self._index.write(lambda txn, part=part: _forget(txn, name, part))  # type: ignore[misc]
            self._segments.files.reached("forgot some")
        return forgotten

    def _free(self, txn: Transaction, victim: Victim) -> None:
        segment = txn.segment(victim.number)
        if segment is None:
            return
        if victim.file is None:
            txn.drop_segment(victim.number)
            return
        emptied = segment._replace(state=FREE, end_block=0, live_chunks=0, live_bytes=0)
        txn.put_segment(victim.number, emptied)


def _condemn(txn: Transaction, number: int, generation: int, *, has_file: bool) -> Segment | None:
    segment = txn.segment(number)
    if segment is None or segment.generation != generation:
        return None
    if segment.state is FREE:
        if not has_file:
            txn.drop_segment(number)
        return None
    txn.put_segment(number, segment._replace(state=RECLAIMING))
    return segment


def _lies_in(extent: Extent, name: SegmentName) -> bool:
    return (extent.segment, extent.generation) == (name.segment, name.generation)


def _live(txn: Transaction, name: SegmentName, batches: Sequence[Batch]) -> Iterator[Live]:
    scopes = {namespace.scope for namespace in txn.namespaces().values()}
    for batch in batches:
        for entry in batch.entries:
            extent = txn.extent(batch.scope, entry.key)
            if extent is not None and _lies_in(extent, name):
                yield Live(batch.namespace, batch.scope, entry.key, extent, batch.scope in scopes)


def _removals(txn: Transaction, name: SegmentName, batches: Sequence[Batch]) -> Iterator[Removals]:
    """The removals that other segments may still need, free ones included until they are overwritten."""
    oldest = txn.oldest_opened(other_than=name.segment)
    by_target: dict[tuple[bytes, int], list[Batch]] = defaultdict(list)
    for batch in batches:
        if batch.removals:
            by_target[batch.namespace, batch.scope].append(batch)
    for (namespace, scope), removing in by_target.items():
        needed = [
            (entry, batch.order)
            for batch in removing
            for entry in batch.entries
            # A chunk that is there again may come back with a rebuild, in whatever place.
            if oldest is not None and entry.block >= oldest and txn.extent(scope, entry.key) is None
        ]
        if needed:
            entries, orders = zip(*needed, strict=True)
            yield Removals(namespace, scope, max(orders), entries)


def _forget(txn: Transaction, name: SegmentName, entries: list[tuple[int, ChunkKey]]) -> int:
    ledger, count = Ledger(txn), 0
    for scope, key in entries:
        extent = ledger.extent(scope, key)
        if extent is not None and _lies_in(extent, name):
            ledger.forget(scope, key, extent)
            count += 1
    ledger.close()
    return count
