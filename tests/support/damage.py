"""Damage done to a store that nobody uses, of every kind that a check has to find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nvme_rig import CHUNK_BYTES, IDENTITY, KIB

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.index.memory import SHARED_MEMORY, home_path
from kvtier.tiers.nvme.index.records import Extent, SegmentState
from kvtier.tiers.nvme.index.transaction import Transaction
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.opening import Store, close_store, open_existing

T = TypeVar("T")

Damage = Callable[[Store], object]


def using(path: Path, work: Callable[[Store], T]) -> T:
    """Do something with the opened store."""
    store = open_existing(Files(), path)
    try:
        return work(store)
    finally:
        close_store(store)


def lose_index(path: Path) -> None:
    """Nothing is left but the log: no checkpoint, and nothing in shared memory."""
    (path / "checkpoint").unlink(missing_ok=True)
    lose_memory(path)


def lose_memory(path: Path) -> None:
    """What a reboot takes: the index in shared memory, if somebody has left one."""
    home = home_of(path)
    if home.exists():
        shutil.rmtree(home)


def copy_of_whole_files(path: Path, target: Path) -> None:
    """What a planned reboot leaves of a store that nobody closed: every file as it is, nothing else."""
    shutil.copytree(path, target)
    target.chmod(0o700)


def home_of(path: Path) -> Path:
    """The directory in shared memory of the store's index, there or not."""
    store = bytes.fromhex(json.loads((path / "kvtier.json").read_text())["store"])
    with (path / "lock").open("rb") as lock:
        return home_path(SHARED_MEMORY, store, lock.fileno())


def sealed(store: Store) -> int:
    with store.index.read() as txn:
        return next(n for n, one in txn.segments().items() if one.state is SegmentState.SEALED)


def overwrite(store: Store, segment: int, offset: int, data: bytes) -> None:
    """Write into a segment's file; a negative offset counts from its end."""
    path = store.directory.segments.path(segment)
    with path.open("r+b") as file:
        file.seek(offset, 2 if offset < 0 else 0)
        file.write(data)


def extent_of(store: Store, key: ChunkKey) -> Extent:
    with store.index.read() as txn:
        return next(extent for _, name, extent in txn.extents() if name == key)


def orphan(store: Store) -> None:
    store.directory.segments.path(77).write_bytes(bytes(BLOCK_BYTES))


def lost_file(store: Store) -> None:
    store.directory.segments.path(sealed(store)).unlink()


def header(store: Store) -> None:
    overwrite(store, sealed(store), 0, bytes(BLOCK_BYTES))


def foreign_header(store: Store) -> None:
    """All of a segment file is another's: neither header nor tables are its own."""
    first, second = sorted(store.directory.segments.paths().items())[:2]
    first[1].write_bytes(second[1].read_bytes())


def trailer(store: Store) -> None:
    overwrite(store, sealed(store), -BLOCK_BYTES, bytes(BLOCK_BYTES))


def flipped(key: ChunkKey) -> Damage:
    """A bit in the middle of the chunk."""

    def flip(store: Store) -> None:
        extent = extent_of(store, key)
        offset = extent.block * BLOCK_BYTES + 8 * KIB
        with store.directory.segments.path(extent.segment).open("rb") as file:
            file.seek(offset)
            (byte,) = file.read(1)
        overwrite(store, extent.segment, offset, bytes([byte ^ 1]))

    return flip


def moved(key: ChunkKey) -> Damage:
    """The index has the chunk where another one lies."""

    def change(txn: Transaction) -> None:
        scope = scope_of(txn)
        extent = txn.extent(scope, key)
        assert extent is not None
        txn.put_extent(scope, key, extent._replace(block=extent.block + 1))

    return lambda store: store.index.write(change)


def misplaced(store: Store) -> None:
    store.index.write(
        lambda txn: txn.put_extent(scope_of(txn), b"nowhere", Extent(999, 1, 1, CHUNK_BYTES, 1, 1, 0, 0))
    )


def segment_sums(store: Store) -> None:
    def put(txn: Transaction) -> None:
        number, segment = next(iter(txn.segments().items()))
        txn.put_segment(number, segment._replace(live_chunks=segment.live_chunks + 5))

    store.index.write(put)


def namespace_sums(store: Store) -> None:
    def put(txn: Transaction) -> None:
        record = txn.namespace(IDENTITY.digest)
        assert record is not None
        txn.put_namespace(IDENTITY.digest, record._replace(chunks=0, chunk_bytes=0, useful_bytes=7))

    store.index.write(put)


def scope_of(txn: Transaction) -> int:
    record = txn.namespace(IDENTITY.digest)
    assert record is not None
    return record.scope
