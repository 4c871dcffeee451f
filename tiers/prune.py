"""Removing chunks from a store on request, also while servers use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .base import ChunkKey, RemoveReason
from .files import BLOCK_BYTES
from .nvme import NvmeTier
from .store import Store
from .store_dir import NamespaceFile

BATCH_CHUNKS = 512  # removed per call, so that servers' commits get their turn


@dataclass(frozen=True, slots=True)
class Selection:
    """Which chunks to remove: those for which all that is given holds.

    Attributes:
        namespace: a label, or the beginning of a digest in hex; empty for all.
        key_prefix: what the key begins with.
        older_than_s: stored at least so many seconds ago.
        never_read: never read back since they were stored.
    """

    namespace: str = ""
    key_prefix: bytes = b""
    older_than_s: float = 0.0
    never_read: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chunks of one namespace that a selection names."""

    digest: bytes
    file: NamespaceFile
    keys: tuple[ChunkKey, ...]
    size_bytes: int


def choose(store: Store, selection: Selection) -> list[Chosen]:
    """What would be removed."""
    return list(_chosen(store, selection))


async def remove(store: Store, chosen: Chosen, told: Callable[[int], None]) -> None:
    """Remove the chunks for good: no rebuild brings them back. `told` hears of each step's count.

    Raises:
        TierError: the store cannot be used.
    """
    with store.index.read() as txn:
        capacity_bytes, reserve_bytes = txn.number("capacity_bytes"), txn.number("reserve_bytes")
    tier = await NvmeTier.open(
        store.directory.root,
        capacity_bytes=capacity_bytes,
        reserve_bytes=reserve_bytes,
        identity=chosen.file.identity,
        chunk_bytes=BLOCK_BYTES,
    )
    try:
        for start in range(0, len(chosen.keys), BATCH_CHUNKS):
            batch = chosen.keys[start : start + BATCH_CHUNKS]
            await tier.remove(batch, RemoveReason.REQUESTED)
            told(len(batch))
        await tier.flush()
    finally:
        await tier.close()


def _chosen(store: Store, selection: Selection) -> Iterator[Chosen]:
    before_s = time.time() - selection.older_than_s
    files = store.directory.namespaces()
    with store.index.read() as txn:
        for digest, record in txn.namespaces().items():
            file = files.get(digest)
            if file is None or not _is_named(digest, file, selection.namespace):
                continue
            keys, size_bytes = [], 0
            for _, key, extent in txn.extents(record.scope, selection.key_prefix):
                if extent.stored_s <= before_s and not (selection.never_read and extent.hits):
                    keys.append(key)
                    size_bytes += extent.length_bytes
            if keys:
                yield Chosen(digest, file, tuple(keys), size_bytes)


def _is_named(digest: bytes, file: NamespaceFile, name: str) -> bool:
    return not name or file.identity.label == name or digest.hex().startswith(name)
