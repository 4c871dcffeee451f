"""Checking a store against itself, also while servers use it.

A server changes index and files all the time, so one look may see the one before and the other after a
change. What one look finds is therefore looked for again, and only what both find counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from .base import ChunkKey
from .checksum import ChunkChecksum
from .files import BLOCK_BYTES, read_all, scratch
from .index import Extent, Segment, SegmentState, Transaction
from .ledger import Ledger
from .segment import CLAIM_BYTE, SegmentFile, SegmentName, blocks_of
from .store import Store

SECOND_LOOK_S = 1.0  # apart: longer than any change of a server takes


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: what sort of thing.
        place: segment number, or key in hex.
        text: a sentence for people.
    """

    kind: str
    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check has found.

    Attributes:
        findings: what is wrong.
        chunks, segments: how many were looked at.
        repaired: how many of the findings were mended.
    """

    findings: tuple[Finding, ...]
    chunks: int
    segments: int
    repaired: int = 0


def check(store: Store, *, deep: bool, repair: bool, told: Callable[[int], None]) -> Report:
    """Check a store; `deep` also reads every chunk and `told` hears how many more were read.

    Raises:
        TierError, OSError: it cannot be checked.
    """
    look = partial(_look, store, deep=deep)
    findings = look(told=told)
    if findings:
        time.sleep(SECOND_LOOK_S)
        again = {finding[:2] for finding in look(told=lambda _: None)}
        findings = [finding for finding in findings if finding[:2] in again]
    with store.index.read() as txn:
        chunks, segments = txn.extents_count(), len(txn.segments())
    repaired = sum(_repair(store, finding) for finding in findings) if repair else 0
    return Report(tuple(findings), chunks, segments, repaired)


def _look(store: Store, *, deep: bool, told: Callable[[int], None]) -> list[Finding]:
    with store.index.read() as txn:
        segments = txn.segments()
        extents = list(txn.extents())
        scopes = {record.scope: digest for digest, record in txn.namespaces().items()}
    findings = [*_files(store, segments), *_headers(store, segments), *_places(store, segments, extents)]
    findings += _sums(segments, extents)
    if deep:
        wrong = {finding.place for finding in findings if finding.kind == "place"}
        readable = [one for one in extents if one[0] in scopes and one[1].hex() not in wrong]
        findings += _contents(store, scopes, readable, told)
    return findings


def _files(store: Store, segments: dict[int, Segment]) -> Iterator[Finding]:
    on_disk = store.directory.segment_files().keys()
    for number in sorted(on_disk - segments.keys()):
        yield Finding("orphan", str(number), f"segment file {number} is in no record of the index")
    for number in sorted(segments.keys() - on_disk):
        yield Finding("lost file", str(number), f"segment {number} has a record and no file")


def _headers(store: Store, segments: dict[int, Segment]) -> Iterator[Finding]:
    for number, segment in segments.items():
        if segment.state not in (SegmentState.SEALED, SegmentState.OPEN):
            continue
        with _opened(store, number, segment.generation) as file:
            if file is None:
                continue
            header = file.read_header()
            if header is None or header.name != file.name:
                yield Finding("header", str(number), f"segment {number} begins with no header of its own")
            elif segment.state is SegmentState.SEALED and file.read_trailer() is None:
                yield Finding(
                    "trailer", str(number), f"segment {number} is sealed and its trailer is damaged"
                )


def _places(
    store: Store, segments: dict[int, Segment], extents: list[tuple[int, ChunkKey, Extent]]
) -> Iterator[Finding]:
    blocks = store.directory.facts.segment_bytes // BLOCK_BYTES
    for _, key, extent in extents:
        segment = segments.get(extent.segment)
        fits = extent.block + blocks_of(extent.length_bytes) <= blocks
        if segment is None or segment.generation != extent.generation or not fits:
            yield Finding("place", key.hex(), f"chunk {key.hex()[:16]} lies in no segment that is in force")


def _sums(segments: dict[int, Segment], extents: list[tuple[int, ChunkKey, Extent]]) -> Iterator[Finding]:
    chunks: Counter[int] = Counter()
    size_bytes: Counter[int] = Counter()
    for _, _, extent in extents:
        segment = segments.get(extent.segment)
        if segment is not None and segment.generation == extent.generation:
            chunks[extent.segment] += 1
            size_bytes[extent.segment] += extent.length_bytes
    for number, segment in segments.items():
        if (segment.live_chunks, segment.live_bytes) != (chunks[number], size_bytes[number]):
            yield Finding(
                "sums",
                str(number),
                f"segment {number} counts {segment.live_chunks} chunks; the index has {chunks[number]} in it",
            )


def _contents(
    store: Store,
    scopes: dict[int, bytes],
    extents: list[tuple[int, ChunkKey, Extent]],
    told: Callable[[int], None],
) -> Iterator[Finding]:
    by_segment: dict[tuple[int, int], list[tuple[int, ChunkKey, Extent]]] = {}
    for one in extents:
        by_segment.setdefault((one[2].segment, one[2].generation), []).append(one)
    for (number, generation), chunks in by_segment.items():
        with _opened(store, number, generation) as file:
            for scope, key, extent in sorted(chunks, key=lambda one: one[2].block):
                told(1)
                if file is not None and not _is_right(store, file, scopes[scope], key, extent):
                    yield Finding("content", key.hex(), f"chunk {key.hex()[:16]} fails its checksum")


def _is_right(store: Store, file: SegmentFile, namespace: bytes, key: ChunkKey, extent: Extent) -> bool:
    memory = scratch(extent.length_bytes)
    done = read_all(store.directory.files, file.fd, [memory], extent.block * BLOCK_BYTES)
    payload = memory[: extent.length_bytes]
    return done >= extent.length_bytes and ChunkChecksum(namespace).of(key, payload) == extent.checksum


class _opened:
    """A segment's file for a while, None where there is none."""

    def __init__(self, store: Store, number: int, generation: int) -> None:
        self._store, self._number, self._generation = store, number, generation
        self._file: SegmentFile | None = None

    def __enter__(self) -> SegmentFile | None:
        directory = self._store.directory
        try:
            fd = directory.files.open_data(directory.segment_path(self._number))
        except FileNotFoundError:
            return None
        name = SegmentName(directory.facts.store, self._number, self._generation)
        self._file = SegmentFile(directory.files, fd, name, directory.facts.segment_bytes)
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._store.directory.files.close(self._file.fd)


def _repair(store: Store, finding: Finding) -> bool:
    """Mend one finding; False where it takes a server's restart, or somebody is just using the place."""
    mend = {
        "orphan": _remove_file,
        "trailer": _write_trailer,
        "lost file": _forget_segment,
        "header": _forget_segment,
        "sums": _count_again,
        "place": _forget_chunk,
        "content": _forget_chunk,
    }[finding.kind]
    return mend(store, finding.place)


def _remove_file(store: Store, place: str) -> bool:
    def change(txn: Transaction) -> bool:
        path = store.directory.segment_path(int(place))
        if txn.segment(int(place)) is not None or not path.exists():
            return False
        fd = store.directory.files.open_data(path, write=True)
        try:
            if not store.directory.files.try_lock(fd, CLAIM_BYTE, exclusive=True):
                return False
            store.directory.files.unlink(path)
            return True
        finally:
            store.directory.files.close(fd)

    return store.index.write(change)


def _write_trailer(store: Store, place: str) -> bool:
    with store.index.read() as txn:
        segment = txn.segment(int(place))
    if segment is None or segment.state is not SegmentState.SEALED:
        return False
    files, directory = store.directory.files, store.directory
    fd = files.open_data(directory.segment_path(int(place)), write=True)
    try:
        if not files.try_lock(fd, CLAIM_BYTE, exclusive=True):
            return False
        name = SegmentName(directory.facts.store, int(place), segment.generation)
        file = SegmentFile(files, fd, name, directory.facts.segment_bytes)
        file.write_trailer([batch.encode() for batch in file.sweep(segment.end_block)])
        return True
    finally:
        files.close(fd)


def _forget_segment(store: Store, place: str) -> bool:
    """Drop what the index has in a segment that cannot be read; its room is reclaimed as any other's."""

    def change(txn: Transaction) -> bool:
        ledger = Ledger(txn)
        for scope, key, extent in list(txn.extents()):
            if extent.segment == int(place):
                ledger.forget(scope, key, extent)
        ledger.close()
        return True

    return store.index.write(change)


def _count_again(store: Store, place: str) -> bool:
    def change(txn: Transaction) -> bool:
        segment = txn.segment(int(place))
        if segment is None:
            return False
        here = [
            extent.length_bytes
            for _, _, extent in txn.extents()
            if (extent.segment, extent.generation) == (int(place), segment.generation)
        ]
        txn.put_segment(int(place), segment._replace(live_chunks=len(here), live_bytes=sum(here)))
        return True

    return store.index.write(change)


def _forget_chunk(store: Store, place: str) -> bool:
    def change(txn: Transaction) -> bool:
        ledger, forgotten = Ledger(txn), False
        for scope, key, extent in list(txn.extents()):
            if key.hex() == place:
                ledger.forget(scope, key, extent)
                forgotten = True
        ledger.close()
        return forgotten

    return store.index.write(change)
