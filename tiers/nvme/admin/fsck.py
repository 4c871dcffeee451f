"""Checks a store against itself, even while servers use it.

Theory of operation. A server changes the index and the files at any moment, and no look sees both at once. So
a first look only suspects, and what it suspects is looked for again in a fresh transaction:

    what only the index says    one transaction sees it all at once: suspected is as good as found
    files and records           a new file is claimed before it has a record; the second look begins when any
                                transaction that was under way has ended
    headers, trailers, tables   written before the index refers to them, and overwritten only when the
                                generation there was raised: one generation in both looks is one life
    chunks                      read while the segment is held against overwriting, as a load does; what the
                                index still has afterwards was there all the time

A finding is bound to the life of its segment, so two lives that each looked odd for a moment are not one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...base import ChunkKey
from ..format.checksum import ChunkChecksum
from ..format.codec import FIRST_BLOCK, Batch, Entry
from ..format.segment_file import SegmentFile, reads_right
from ..index.errors import IndexDamaged
from ..index.records import Namespace, Segment, SegmentState
from ..io.blocks import BLOCK_BYTES, blocks_of
from ..io.files import Files
from ..log.readers import Readers
from ..store.facts import FACTS
from ..store.opening import Store, close_store, open_rebuilt, open_untouched
from .finding import Finding, Kind, Report, Where
from .lost_facts import restore_facts
from .mend import Sums, mend

logger = logging.getLogger(__name__)

IN_FORCE = (SegmentState.OPEN, SegmentState.SEALED, SegmentState.RECLAIMING)

Progress = Callable[[int, int], None]
"""Called with how many chunks were read so far, and of how many."""


class _Chunk(NamedTuple):
    """One line of the index, as far as it is checked: a million of them are in memory at once."""

    block: int
    scope: int
    key: ChunkKey
    length_bytes: int
    checksum: int


class _View(NamedTuple):
    """The index at one moment: chunks by the segment that has them in force, sums by scope."""

    segments: dict[int, Segment]
    namespaces: dict[bytes, Namespace]
    chunks: dict[int, list[_Chunk]]
    sums: dict[int, Sums]
    misplaced: list[Where]


def check_directory(files: Files, root: Path, *, deep: bool, repair: bool, progress: Progress) -> Report:
    """Check the store at `root`, with `deep` every chunk too. Chunks change only where `repair` is set.

    Raises:
        TierError, OSError: it cannot be checked: it is no store, or its index is damaged while in use.
    """
    if repair and restore_facts(files, root):
        logger.warning("nvme: %s was lost or damaged; it was written again from the segments", root / FACTS)
    try:
        store = open_untouched(files, root)
    except IndexDamaged as error:
        return _without_index(files, root, error, deep=deep, repair=repair, progress=progress)
    try:
        return check(store, deep=deep, repair=repair, progress=progress)
    except IndexDamaged as error:
        if not store.directory.alone:
            raise  # then it may be our own trouble: too many readers, say
        damage = error
    finally:
        close_store(store)
    return _without_index(files, root, damage, deep=deep, repair=repair, progress=progress)


def check(store: Store, *, deep: bool, repair: bool, progress: Progress) -> Report:
    """Check an opened store.

    Raises:
        TierError, OSError: it cannot be checked.
    """
    view = _view(store)
    findings = list(_shallow(store, view))
    if findings:
        store.index.write(lambda _: None)  # any change of files that was under way is done
        view = _view(store)
        suspected = {finding[:2] for finding in findings}
        findings = [finding for finding in _shallow(store, view) if finding[:2] in suspected]
    if deep:
        known = {finding.where for finding in findings if finding.kind is Kind.TABLE}
        findings += _contents(store, view, known, progress)
    findings.sort(key=lambda finding: (list(Kind).index(finding.kind), finding.where))
    repaired = mend(store, list(_mendable(store, view, findings))) if repair else 0
    return Report(tuple(findings), sum(map(len, view.chunks.values())), len(view.segments), repaired)


def _without_index(
    files: Files, root: Path, damage: IndexDamaged, *, deep: bool, repair: bool, progress: Progress
) -> Report:
    lost = Finding(Kind.INDEX, Where(), f"{damage}; it can be rebuilt from the segments")
    if not repair:
        return Report((lost,), 0, 0)
    store = open_rebuilt(files, root)
    try:
        report = check(store, deep=deep, repair=True, progress=progress)
    finally:
        close_store(store)
    return replace(report, findings=(lost, *report.findings), repaired=report.repaired + 1)


def _view(store: Store) -> _View:
    blocks = store.directory.facts.segment_bytes // BLOCK_BYTES
    with store.index.read() as txn:
        view = _View(txn.segments(), txn.namespaces(), defaultdict(list), defaultdict(Sums), [])
        for scope, key, extent in txn.extents():
            view.sums[scope].add(extent)
            segment = view.segments.get(extent.segment)
            fits = FIRST_BLOCK <= extent.block <= blocks - blocks_of(extent.length_bytes)
            alive = segment is not None and segment.state in IN_FORCE
            if segment is None or not alive or not fits or segment.generation != extent.generation:
                view.misplaced.append(Where(*extent[:3], scope, key))
                continue
            chunk = _Chunk(extent.block, scope, key, extent.length_bytes, extent.checksum)
            view.chunks[extent.segment].append(chunk)
    return view


def _shallow(store: Store, view: _View) -> Iterator[Finding]:
    """Everything but the chunks' bytes."""
    yield from _files(store, view.segments)
    for where in view.misplaced:
        yield Finding(Kind.PLACE, where, f"chunk {_short(where)} lies in no segment that is in force")
    yield from _sums(view)
    for number, segment in view.segments.items():
        if segment.state in (SegmentState.OPEN, SegmentState.SEALED):
            yield from _segment(store, number, segment, view.chunks.get(number, ()))


def _files(store: Store, segments: Mapping[int, Segment]) -> Iterator[Finding]:
    on_disk = store.directory.segments.paths().keys()
    for number in sorted(on_disk - segments.keys()):
        with store.directory.segments.claimed(number) as file:
            if file is None:  # a server claims a new file before it gives it a record
                continue
        text = f"segment file {number} is in no record of the index"
        yield Finding(Kind.ORPHAN, Where(number), text)
    # A free segment's file goes before its record does, and whoever wants it next drops the record.
    in_force = {number for number, segment in segments.items() if segment.state in IN_FORCE}
    for number in sorted(in_force - on_disk):
        where = Where(number, segments[number].generation)
        yield Finding(Kind.LOST_FILE, where, f"segment {number} has a record and no file")


def _sums(view: _View) -> Iterator[Finding]:
    for number, segment in view.segments.items():
        chunks = view.chunks.get(number, ())
        size_bytes = sum(chunk.length_bytes for chunk in chunks)
        if (segment.live_chunks, segment.live_bytes) != (len(chunks), size_bytes):
            text = f"segment {number} counts {segment.live_chunks} chunks, {segment.live_bytes} bytes; "
            text += f"there are {len(chunks)}, {size_bytes}"
            yield Finding(Kind.SUMS, Where(number, segment.generation), text)
    for digest, record in view.namespaces.items():
        there = view.sums.get(record.scope, Sums())
        if Sums(record.chunks, record.chunk_bytes, record.useful_bytes) != there:
            text = (
                f"namespace {digest.hex()[:12]} counts {record.chunks} chunks, {record.chunk_bytes} bytes, "
            )
            text += f"{record.useful_bytes} of use; there are {there.chunks}, {there.size_bytes}, "
            text += f"{there.useful_bytes}"
            yield Finding(Kind.SUMS, Where(scope=record.scope, namespace=digest), text)


def _segment(store: Store, number: int, segment: Segment, chunks: Sequence[_Chunk]) -> Iterator[Finding]:
    """Compare what a segment's file says about itself with what the index says."""
    where = Where(number, segment.generation)
    with store.directory.segments.opened(number, segment.generation) as file:
        if file is None:
            return
        # One that was just claimed has none yet; its first commit shows that it has.
        begun = segment.state is SegmentState.SEALED or segment.end_block > FIRST_BLOCK
        if begun and not _has_header(file):
            yield Finding(Kind.HEADER, where, f"segment {number} does not begin with a header of its own")
        if segment.state is SegmentState.SEALED:
            batches = _trailer(file)
            if batches is None:
                yield Finding(Kind.TRAILER, where, f"segment {number} is sealed and its trailer is damaged")
        else:
            batches = None
        if batches is None:
            batches = _swept(file, segment.end_block)
    listed = {
        _Chunk(entry.block, batch.scope, entry.key, entry.length_bytes, entry.checksum)
        for batch in batches
        if not batch.removals
        for entry in batch.entries
    }
    for chunk in chunks:
        if chunk not in listed:
            place = where._replace(block=chunk.block, scope=chunk.scope, key=chunk.key)
            text = f"chunk {_short(place)} is in no table of segment {number} as the index has it"
            yield Finding(Kind.TABLE, place, text)


# A device that refuses to read is no reason to stop: what it refused is damaged.


def _has_header(file: SegmentFile) -> bool:
    try:
        header = file.read_header()
    except OSError:
        return False
    return header is not None and header.name == file.name


def _trailer(file: SegmentFile) -> list[Batch] | None:
    try:
        return file.read_trailer()
    except OSError:
        return None


def _swept(file: SegmentFile, end_block: int) -> list[Batch]:
    batches = []
    try:
        for batch in file.sweep(end_block):
            batches.append(batch)
    except OSError:
        pass  # chunks of what follows are found to be in no table, and those that are right are kept
    return batches


def _contents(store: Store, view: _View, known: set[Where], progress: Progress) -> Iterator[Finding]:
    digests = {record.scope: digest for digest, record in view.namespaces.items()}
    total = sum(chunk.scope in digests for chunks in view.chunks.values() for chunk in chunks)
    done = 0
    for number, chunks in view.chunks.items():
        generation = view.segments[number].generation
        for chunk in sorted(chunks):
            if chunk.scope not in digests:  # of a past epoch: no lookup finds it
                continue
            done += 1
            progress(done, total)
            where = Where(number, generation, chunk.block, chunk.scope, chunk.key)
            if where not in known and not _is_right(store, where, chunk, digests[chunk.scope]):
                text = f"chunk {_short(where)} cannot be read or fails its checksum"
                yield Finding(Kind.CONTENT, where, text)


def _mendable(store: Store, view: _View, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Leave out intact chunks that only their table has lost: they serve until their segment goes."""
    digests = {record.scope: digest for digest, record in view.namespaces.items()}
    for finding in findings:
        where = finding.where
        chunk = _chunk(store, where) if finding.kind is Kind.TABLE and where.scope in digests else None
        if chunk is None or not _is_right(store, where, chunk, digests[where.scope]):
            yield finding


def _chunk(store: Store, where: Where) -> _Chunk | None:
    """What the index says of the chunk, if it is still there."""
    with store.index.read() as txn:
        extent = txn.extent(where.scope, where.key)
    if extent is None or extent[:3] != where[:3]:
        return None
    return _Chunk(extent.block, where.scope, where.key, extent.length_bytes, extent.checksum)


def _is_right(store: Store, where: Where, chunk: _Chunk, namespace: bytes) -> bool:
    readers = Readers(store.directory.segments, store.index, namespace)
    entry = Entry(chunk.key, chunk.block, chunk.length_bytes, chunk.checksum, 0)
    try:
        fd = readers.acquire(where.segment, where.generation)
        if fd is None:
            return True  # that life has ended: the chunk is not there any more
        try:
            right = reads_right(store.directory.files, fd, entry, ChunkChecksum(namespace))
            return right or _chunk(store, where) is None
        finally:
            readers.release(where.segment)
    except FileNotFoundError:
        return True  # the file is lost, which is a finding of its own
    finally:
        readers.close()


def _short(where: Where) -> str:
    return where.key.hex()[:16]
