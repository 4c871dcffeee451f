"""Rebuilds the index from the log, when it is lost, torn or another store's.

Each sealed segment costs one read of its trailer, an unsealed one a sweep and a look at its chunks: a power
loss may have left a table whose chunks were never synced, and what the index has is not stored anew. A drive
that refuses a place costs what is at that place. What a rebuild cannot know is how often a chunk was read: it
starts again at never.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ...base import ChunkKey
from ..format.checksum import ChunkChecksum
from ..format.codec import FIRST_BLOCK, Batch, Entry
from ..format.segment_file import SegmentFile, reads_right
from ..index.environment import Index
from ..index.ledger import Ledger
from ..index.records import Extent, Namespace, Segment, SegmentState
from ..index.transaction import Transaction
from ..log import order
from ..log.budget import SEGMENT_SLACK_BYTES
from ..log.room import index_is_tight
from ..log.segments import Segments
from .directory import StoreDirectory

REBUILT_S = "rebuilt_s"  # the number in the index that says when: nobody knows what was read before
PUT_STEP_MAX = 4096  # entries per transaction: large enough to be quick, small enough for any map


class _Found(NamedTuple):
    number: int
    segment: Segment
    batches: list[Batch]


def rebuild(directory: StoreDirectory, index: Index) -> None:
    """Fill an empty index from the segments, and remove files that are none. Call it alone, while opening.

    Raises:
        OSError: the directory cannot be read.
    """
    found = _found(directory.segments)
    batches = [batch for one in found for batch in one.batches]
    index.write(lambda txn: _put_frame(txn, directory, found, batches))
    _put_extents(index, directory.facts.index_bytes, batches)
    # Last: an index without the store's name is one whose rebuild did not finish.
    index.write(lambda txn: txn.set_store_uuid(directory.facts.store))


def _found(segments: Segments) -> list[_Found]:
    """The store's segments, the oldest first."""
    found, useless, refused = [], [], None
    for number in sorted(segments.paths()):
        try:
            one = _look(segments, number)
        except OSError as error:
            one, refused = None, error
        if one is None:
            useless.append(number)
        else:
            found.append(one)
    if refused is not None and not found:
        raise refused  # not a place of the drive but the drive: it may read again some day
    for number in useless:
        segments.unlink(number)
    return sorted(found, key=lambda one: one.segment.opened)


def _look(segments: Segments, number: int) -> _Found | None:
    """What a segment file says about itself, None where it is no segment of this store.

    Raises:
        OSError: whose segment it is cannot be read.
    """
    with segments.opened(number, write=True) as unnamed:
        header = unnamed.read_header() if unnamed is not None else None
        if unnamed is None or header is None or header.name[:2] != unnamed.name[:2]:
            return None
        file = segments.file(unnamed.fd, number, header.name.generation)
        sealed = _trailer(file)
        batches = _swept(file) if sealed is None else sealed
        state = SegmentState.OPEN if sealed is None else SegmentState.SEALED
        end = max([FIRST_BLOCK, *(batch.end_block for batch in batches)])
        if sealed is None:
            batches = [_corrected(file, batch) for batch in batches]
        allocated_bytes = segments.facts.segment_bytes + SEGMENT_SLACK_BYTES
        segment = Segment(state, header.name.generation, header.opened, end, 0, 0, allocated_bytes)
        return _Found(number, segment, batches)


def _trailer(file: SegmentFile) -> list[Batch] | None:
    try:
        return file.read_trailer()
    except OSError:
        return None


def _swept(file: SegmentFile) -> list[Batch]:
    """The batches of an unsealed segment, as far as they can be read."""
    batches: list[Batch] = []
    with contextlib.suppress(OSError):
        for batch in file.sweep():
            batches.append(batch)
    return batches


def _corrected(file: SegmentFile, batch: Batch) -> Batch:
    """Cut the table down to the chunks that are there, on the drive too: the trailer is to repeat it."""
    if batch.removals:
        return batch
    checksum = ChunkChecksum(batch.namespace)
    entries = tuple(entry for entry in batch.entries if reads_right(file.files, file.fd, entry, checksum))
    if entries == batch.entries:
        return batch
    fewer = replace(batch, entries=entries)
    fewer = replace(fewer, data_blocks=batch.end_block - fewer.block - fewer.table_blocks)
    assert fewer.end_block == batch.end_block, "what follows is found behind it"
    with contextlib.suppress(OSError):
        file.write_table(fewer)
    return fewer


def _put_frame(
    txn: Transaction, directory: StoreDirectory, found: Sequence[_Found], batches: Sequence[Batch]
) -> None:
    """Segments, namespaces and counters, so that no number is given out twice."""
    for number, segment, _ in found:
        txn.put_segment(number, segment)
    scopes: dict[bytes, tuple[int, int]] = {}
    for digest, namespace in directory.namespaces.read().items():
        scopes[digest] = (namespace.scope, namespace.epoch)
    for batch in batches:
        scope, epoch = scopes.get(batch.namespace, (0, 0))
        scopes[batch.namespace] = (max(scope, batch.scope), epoch)
    for digest, (scope, epoch) in scopes.items():
        if scope:
            txn.put_namespace(digest, Namespace(scope, epoch, 0, 0, 0, 0))
    txn.set_number("scope", max([0, *(scope for scope, _ in scopes.values())]))
    for batch in batches:
        order.note(txn, batch.order, removal=batch.removals)
    txn.set_number("segment", max([0, *(one.number for one in found)]))
    if found:
        txn.set_number(REBUILT_S, int(time.time()))
    txn.set_number("opened", max([0, *(one.segment.opened for one in found)]))


def _put_extents(index: Index, index_bytes: int, batches: Sequence[Batch]) -> None:
    removed = _removed(batches)
    lines = (
        (batch, entry)
        for batch in batches
        if not batch.removals
        for entry in batch.entries
        if batch.order > removed.get((batch.scope, entry.key), -1)
    )
    step: list[tuple[Batch, Entry]] = []
    for line in lines:
        step.append(line)
        if len(step) == PUT_STEP_MAX:
            index.write(lambda txn, step=step: _put(txn, index_bytes, step))  # type: ignore[misc]
            step = []
    index.write(lambda txn: _put(txn, index_bytes, step))


def _removed(batches: Sequence[Batch]) -> dict[tuple[int, ChunkKey], int]:
    """When each removed key was removed last."""
    removed: dict[tuple[int, ChunkKey], int] = {}
    for batch in batches:
        for name in _names(batch) if batch.removals else ():
            removed[name] = max(batch.order, removed.get(name, 0))
    return removed


def _names(batch: Batch) -> Iterator[tuple[int, ChunkKey]]:
    return ((batch.scope, entry.key) for entry in batch.entries)


def _put(txn: Transaction, index_bytes: int, lines: Sequence[tuple[Batch, Entry]]) -> None:
    if index_is_tight(txn, index_bytes):
        return  # the newest segments come last and would fit less; what is left out is a miss
    ledger = Ledger(txn)
    for batch, entry in lines:
        if ledger.in_force(batch.scope):
            name = batch.name
            place = (name.segment, name.generation, entry.block, entry.length_bytes)
            extent = Extent(*place, entry.checksum, entry.stored_s, 0, 0)
            ledger.put(batch.scope, entry.key, ledger.extent(batch.scope, entry.key), extent)
    ledger.close()
