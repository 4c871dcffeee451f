"""Brings the chunks of a pack into a store, even while servers use the store.

They are stored as a server's chunks are: under the store's cap and reserve. Where there is no room, they take
that of the oldest ones. What is there already is left as it is, so a second try goes on where the first one
ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError
from ...settled import settled
from ..format.checksum import ChunkChecksum
from ..io.files import Files
from ..io.lanes import Lanes
from ..store.full import with_room
from ..store.namespaces import Identity
from ..store.opening import Store, close_store, open_existing, refuse_large
from ..store.scopes import open_namespace
from ..tier import WRITE_AMPLIFICATION, NvmeTier
from ..wear.terms import NO_TERMS
from .pack_file import Head, PackDamaged, Record

BATCH_BYTES_MAX = 32 * 1024 * 1024  # stored at once; a segment where those are smaller, so that room is found


class Unpacked(NamedTuple):
    """What became of a pack's chunks.

    Attributes:
        there_chunks: those that the store had already.
        evicted_chunks: those that this process took out of the store to make room.
        damaged_chunks: those that fail their checksums.
        failed: how many could not be stored, by reason.
        error: why the rest of the pack could not be read; None where all of it was.
    """

    chunks: int
    size_bytes: int
    there_chunks: int
    evicted_chunks: int
    damaged_chunks: int
    failed: Mapping[str, int]
    error: PackDamaged | None


async def unpack(
    files: Files,
    root: Path,
    head: Head,
    records: Iterator[Record],
    stop: Callable[[], None],
    *,
    new_namespace: bool,
    progress: Callable[[int], None],
) -> Unpacked:
    """Store every record that is right and not there yet, durably.

    Cancellation: what was stored so far is kept. `stop` then has to end what waits for the next record.

    Raises:
        ConfigError: the store has another identity's namespaces only, or is ahead of the pack.
        TierError: the store cannot be used.
    """
    store = open_existing(files, root)
    try:
        refuse_other(store, root, head, new_namespace=new_namespace)
        opening = partial(open_namespace, store.directory, store.index, head.identity)
        with_room(store.directory.segments, store.index, opening)
        with store.index.read() as txn:
            capacity_bytes = txn.number("capacity_bytes")
        lanes = Lanes()
    except BaseException:
        close_store(store)
        raise
    tier = NvmeTier(
        lanes,
        store,
        head.identity,
        capacity_bytes=capacity_bytes,
        chunk_bytes=store.directory.facts.segment_bytes,
        write_amplification=WRITE_AMPLIFICATION,
        terms=NO_TERMS,
    )
    try:
        return await _stored(tier, lanes, store, head, records, stop, progress)
    finally:
        await tier.close()


def refuse_other(store: Store, root: Path, head: Head, *, new_namespace: bool) -> None:
    """Refuse a pack that no server on this store would use.

    Raises:
        ConfigError: it names the fields in which the nearest namespace differs.
    """
    ours = store.directory.namespaces.read()
    known = ours.get(head.identity.digest)
    if known is not None:
        if store.directory.facts.store == head.store and known.epoch > head.epoch:
            raise ConfigError(
                "", f"{root} was reset since the pack was made: its chunks are outdated; export it again"
            )
        return
    if new_namespace:
        return
    what = "; or import it all the same with --new-namespace, for servers to come"
    others = [file.identity for file in ours.values() if not file.identity.is_of_one_process]
    if not others:
        raise ConfigError("", f"{root} has no namespace yet: start the server first{what}")
    nearest = min(others, key=lambda other: len(_differing(head.identity, other)))
    raise ConfigError("", f"{_differences(head.identity, nearest)}{what}")


def _differences(pack: Identity, other: Identity) -> str:
    return "; ".join(
        f"{field}: the pack has {_shown(pack, field)}, the store's {other.label} has {_shown(other, field)}"
        for field in _differing(pack, other)
    )


def _differing(pack: Identity, other: Identity) -> list[str]:
    named = dict.fromkeys((*pack.fields, *other.fields))
    return [field for field in named if pack.fields.get(field) != other.fields.get(field)]


def _shown(identity: Identity, field: str) -> str:
    return f'"{identity.fields[field]}"' if field in identity.fields else "none"


async def _stored(
    tier: NvmeTier,
    lanes: Lanes,
    store: Store,
    head: Head,
    records: Iterator[Record],
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> Unpacked:
    checksum = ChunkChecksum(head.identity.digest)
    chunks = size_bytes = there = damaged = 0
    failed: Counter[str] = Counter()
    reader = _Reader(records, min(BATCH_BYTES_MAX, store.directory.facts.segment_bytes))
    while batch := await settled(lanes.upkeep(reader.batch), stop):
        for record in batch:
            refuse_large(store.directory.facts, len(record.payload))
        right = [one for one in batch if checksum.of(one.key, one.payload) == one.checksum]
        damaged += len(batch) - len(right)
        is_there = tier.lookup([one.key for one in right])
        new = {one.key: one.payload for one, found in zip(right, is_there, strict=True) if not found}
        there += len(right) - len(new)
        outcome = await tier.store([*new], [*new.values()])
        failed.update(why.value for why in outcome.failed.values())
        chunks += len(outcome.succeeded)
        size_bytes += sum(len(new[key]) for key in outcome.succeeded)
        progress(len(batch))
    await tier.flush()
    evicted = tier.stats().counters["evicted_chunks"]
    return Unpacked(chunks, size_bytes, there, evicted, damaged, dict(failed), reader.error)


class _Reader:
    """Reads records in batches, up to where a pack cannot be read on."""

    def __init__(self, records: Iterator[Record], batch_bytes: int) -> None:
        self._records, self._batch_bytes = records, batch_bytes
        self.error: PackDamaged | None = None

    def batch(self) -> Sequence[Record]:
        batch: list[Record] = []
        batch_bytes = 0
        try:
            while batch_bytes < self._batch_bytes and (found := list(islice(self._records, 1))):
                batch += found
                batch_bytes += len(found[0].payload)
        except PackDamaged as error:
            self.error = error
        return batch
