"""Makes a pack of a store's chunks, even while servers use the store.

Chunks are read as a load reads them, and count as no use. What a server has reclaimed since it was chosen is
looked for again where it was carried to, or else left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, NamedTuple

from ...base import Buffer, ChunkKey, Failure
from ..format.checksum import ChunkChecksum
from ..index.records import Extent
from ..io.blocks import aligned, scratch
from ..io.lanes import Lanes
from ..io.pieces import Wanted
from ..io.plan import plan_reads
from ..log.readers import Readers
from ..store.opening import Store
from .pack_file import Head, PackDamaged, encode_end, encode_record, read_head, read_records
from .prune import Chosen

BATCH_BYTES = 32 * 1024 * 1024  # read at once: enough for all lanes; one chunk where that is larger
LOOKS_MAX = 3  # for one chunk: what moves faster than that is evicted in truth


class Packed(NamedTuple):
    """What a pack has now, and what of the chosen it has not: gone since, or damaged."""

    chunks: int
    size_bytes: int
    gone_chunks: int
    damaged_chunks: int


class Begun(NamedTuple):
    """A pack that was begun: the keys that it has, the bytes of its chunks, and where it goes on."""

    keys: frozenset[ChunkKey]
    size_bytes: int
    end: int


def head_of(store: Store, chosen: Chosen) -> Head:
    """The head of a pack of these chunks."""
    return Head(chosen.file.identity, store.directory.facts.store, chosen.file.epoch)


def begun(head: Head, file: IO[bytes]) -> Begun:
    """Read a pack that ends early, as far as it is right.

    Raises:
        PackDamaged: it is no pack, or one of something else.
    """
    theirs = read_head(file)
    if (theirs.identity.digest, *theirs[1:]) != (head.identity.digest, *head[1:]):
        raise PackDamaged("it was begun for another namespace, epoch or store; remove it")
    checksum, start = ChunkChecksum(head.identity.digest), file.tell()
    keys: set[ChunkKey] = set()
    size_bytes, end = 0, start
    try:
        for record in read_records(file):
            if checksum.of(record.key, record.payload) != record.checksum:
                break
            keys.add(record.key)
            size_bytes, end = size_bytes + len(record.payload), file.tell()
    except PackDamaged:
        pass  # it goes on behind the last record that is right
    return Begun(frozenset(keys), size_bytes, end)


async def pack(
    store: Store,
    chosen: Chosen,
    newest_bytes: int | None,
    before: Begun | None,
    write: Callable[[Buffer | bytes], object],
    progress: Callable[[int, int], None],
) -> Packed:
    """Write the chunks in the order of the log, and the end behind them; `before` is what is there already.

    Raises:
        TierError: the index cannot be asked.
        OSError: `write` raised it.
    """
    keys = _ordered(store, chosen, newest_bytes, before.keys if before else ())
    lanes, readers = Lanes(), Readers(store.directory.segments, store.index, chosen.digest)
    chunks, size_bytes = (len(before.keys), before.size_bytes) if before else (0, 0)
    failed: list[Failure] = []
    done = 0
    try:
        for batch in _batches(keys):
            found, lost = await _read(store, chosen, lanes, readers, [key for key, _ in batch])
            for wanted in found:
                write(encode_record(wanted.key, len(wanted.buffer), wanted.place.checksum))
                write(wanted.buffer)
            chunks, size_bytes = chunks + len(found), size_bytes + sum(len(one.buffer) for one in found)
            failed += lost
            done += len(batch)
            progress(done, len(keys))
        write(encode_end(chunks))
    finally:
        readers.close()
        lanes.close()
    gone = failed.count(Failure.MISSING)
    return Packed(chunks, size_bytes, gone, len(failed) - gone)


def _ordered(
    store: Store, chosen: Chosen, newest_bytes: int | None, there: Collection[ChunkKey]
) -> list[tuple[ChunkKey, int]]:
    """The chosen keys with their lengths, in the order of the log: neighbours are read together."""
    with store.index.read() as txn:
        opened = {number: segment.opened for number, segment in txn.segments().items()}
        extents = [(key, txn.extent(chosen.scope, key)) for key in chosen.keys]
    found = [(key, extent) for key, extent in extents if extent is not None]
    found.sort(key=lambda item: (opened.get(item[1].segment, 0), item[1].block))
    if newest_bytes is not None:
        newest = set(_newest(found, newest_bytes))
        found = [item for item in found if item[0] in newest]
    return [(key, extent.length_bytes) for key, extent in found if key not in there]


def _newest(found: Sequence[tuple[ChunkKey, Extent]], most_bytes: int) -> Iterator[ChunkKey]:
    for key, extent in sorted(found, key=lambda item: -item[1].stored_s):  # stable: heads before tails
        most_bytes -= extent.length_bytes
        if most_bytes < 0:
            return
        yield key


def _batches(keys: Sequence[tuple[ChunkKey, int]]) -> Iterator[list[tuple[ChunkKey, int]]]:
    batch: list[tuple[ChunkKey, int]] = []
    batch_bytes = 0
    for key, length_bytes in keys:
        if batch and batch_bytes + length_bytes > BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
        batch.append((key, length_bytes))
        batch_bytes += length_bytes
    if batch:
        yield batch


async def _read(
    store: Store, chosen: Chosen, lanes: Lanes, readers: Readers, keys: Sequence[ChunkKey]
) -> tuple[list[Wanted[Extent]], list[Failure]]:
    """Read the chunks; those that are right, in order, and why the others are not."""
    checksum = ChunkChecksum(chosen.digest)
    right: dict[ChunkKey, Wanted[Extent]] = {}
    failed = dict.fromkeys(keys, Failure.MISSING)
    for _ in range(LOOKS_MAX):
        scope, extents = store.index.find(chosen.digest, [*failed])
        places = {} if scope != chosen.scope else dict(zip([*failed], extents, strict=True))
        wanted = _wanted([(key, place) for key, place in places.items() if place is not None])
        pieces = plan_reads(store.directory.files, readers, checksum, wanted)
        await lanes.load(pieces)
        failed = dict.fromkeys(failed, Failure.MISSING)
        for piece in pieces:
            for position, one in enumerate(piece.chunks):
                if position in piece.failed:
                    failed[one.key] = piece.failed[position]
                else:
                    right[one.key] = one
                    del failed[one.key]
        if Failure.MISSING not in failed.values():
            break
    return [right[key] for key in keys if key in right], list(failed.values())


def _wanted(places: Sequence[tuple[ChunkKey, Extent]]) -> list[Wanted[Extent]]:
    memory, start = scratch(sum(aligned(place.length_bytes) for _, place in places)), 0
    wanted = []
    for key, place in places:
        wanted.append(Wanted(key, place, memory[start : start + place.length_bytes]))
        start += aligned(place.length_bytes)
    return wanted
