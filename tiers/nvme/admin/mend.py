"""Repairs what a check has found wrong in a store, even while servers use it.

Every change is made in a write transaction or under the claim of the segment's file, after looking again
whether the finding still holds there. What somebody just appends to or reclaims is left to them. Nothing that
can be read and is listed is given up: a header or a trailer is written again from the segment's own tables.

Chunks are dropped without keeping up the sums, which are counted again at the end, all at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..format.segment_file import SegmentFile
from ..index.records import Extent, Segment, SegmentState
from ..index.transaction import Transaction
from ..log.chunks import Live
from ..log.events import Events
from ..log.room import Room
from ..log.victim import FORGET_STEP_MAX, Victims
from ..store.opening import Store
from .finding import Finding, Kind, Where


@dataclass(slots=True)
class Sums:
    """What a record should count."""

    chunks: int = 0
    size_bytes: int = 0
    useful_bytes: int = 0

    def add(self, extent: Extent) -> None:
        self.chunks += 1
        self.size_bytes += extent.length_bytes
        self.useful_bytes += extent.length_bytes if extent.hits else 0


def mend(store: Store, findings: Sequence[Finding]) -> int:
    """Repair the findings, which are in the order of their kinds; returns how many hold no longer.

    Raises:
        TierError, OSError: the store refused; what was repaired so far stays so.
    """
    sums = sum(finding.kind is Kind.SUMS for finding in findings)
    if sums:
        store.index.write(_count_again)  # before anything is taken from them
    mended = [finding for finding in findings if finding.kind in _ONE_BY_ONE and _mend_one(store, finding)]
    chunks = [finding.where for finding in findings if finding.kind in _CHUNKS]
    for start in range(0, len(chunks), FORGET_STEP_MAX):
        part = chunks[start : start + FORGET_STEP_MAX]
        store.index.write(lambda txn, part=part: _forget(txn, part))  # type: ignore[misc]
    if chunks:
        store.index.write(_count_again)
    return len(mended) + len(chunks) + sums


def _mend_one(store: Store, finding: Finding) -> bool:
    return _ONE_BY_ONE[finding.kind](store, finding.where)


def _remove_orphan(store: Store, where: Where) -> bool:
    segments = store.directory.segments

    # Under its claim: a server claims a new file before it gives it a record.
    with segments.claimed(where.segment) as file:
        if file is None:
            return not segments.exists(where.segment)
        with store.index.read() as txn:
            is_orphan = txn.segment(where.segment) is None
        if is_orphan:
            segments.unlink(where.segment)
        return True


def _write_header(store: Store, where: Where) -> bool:
    """Write the header again where the segment's tables show whose it is; else give the segment up."""
    with store.directory.segments.claimed(where.segment, where.generation) as file:
        if file is None:
            return False
        segment = _now(store, where)
        if segment is None:
            return True
        if _has_tables(file):
            file.write_header(segment.opened)
            file.sync()
            return True
    return _give_up(store, where)


def _write_trailer(store: Store, where: Where) -> bool:
    with store.directory.segments.claimed(where.segment, where.generation) as file:
        if file is None:
            return False
        segment = _now(store, where)
        if segment is None or segment.state is not SegmentState.SEALED:
            return True
        try:
            # To its very end: removals are appended without raising the end that the index knows.
            tables = [batch.encode() for batch in file.sweep()]
        except OSError:
            return False  # a trailer would hide what can be read some day
        file.sync()
        file.write_trailer(tables)
        return True


def _give_up(store: Store, where: Where) -> bool:
    """Drop every extent in a segment that cannot be used, and free the segment as a reclaim does."""
    segments, index = store.directory.segments, store.index
    victims = Victims(segments, index, Room(segments, index), Events())
    victim = victims.take(where.segment, where.generation)
    if victim is None:
        return _now(store, where) is None
    with index.read() as txn:
        live = tuple(
            Live(b"", scope, key, extent)
            for scope, key, extent in txn.extents()
            if extent[:2] == (where.segment, where.generation)
        )
    victims.finish(victim._replace(live=live))
    return True


def _now(store: Store, where: Where) -> Segment | None:
    """The segment's record, if it is still in the life that the finding is about."""
    with store.index.read() as txn:
        segment = txn.segment(where.segment)
    return segment if segment is not None and segment.generation == where.generation else None


def _has_tables(file: SegmentFile) -> bool:
    try:
        return any(True for _ in file.sweep())
    except OSError:
        return False


def _forget(txn: Transaction, chunks: Iterable[Where]) -> None:
    for where in chunks:
        extent = txn.extent(where.scope, where.key)
        if extent is not None and extent[:3] == where[:3]:
            txn.drop_extent(where.scope, where.key)


def _count_again(txn: Transaction) -> None:
    """Recount every sum from the extents. For a million chunks that is a second in which nobody commits."""
    segments, namespaces = txn.segments(), txn.namespaces()
    in_segment: dict[int, Sums] = defaultdict(Sums)
    in_scope: dict[int, Sums] = defaultdict(Sums)
    for scope, _, extent in txn.extents():
        segment = segments.get(extent.segment)
        if segment is not None and segment.generation == extent.generation:
            in_segment[extent.segment].add(extent)
        in_scope[scope].add(extent)
    for number, segment in segments.items():
        sums = in_segment[number]
        right = segment._replace(live_chunks=sums.chunks, live_bytes=sums.size_bytes)
        if right != segment:
            txn.put_segment(number, right)
    for digest, record in namespaces.items():
        sums = in_scope[record.scope]
        counted = record._replace(
            chunks=sums.chunks, chunk_bytes=sums.size_bytes, useful_bytes=sums.useful_bytes
        )
        if counted != record:
            txn.put_namespace(digest, counted)


_ONE_BY_ONE = {
    Kind.ORPHAN: _remove_orphan,
    Kind.LOST_FILE: _give_up,
    Kind.HEADER: _write_header,
    Kind.TRAILER: _write_trailer,
}
_CHUNKS = {Kind.PLACE, Kind.TABLE, Kind.CONTENT}
