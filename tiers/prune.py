"""Removing chunks from a store on request, also while servers use it.

Right before each step its chunks are looked at again: what a server has read, stored anew or dropped since
they were chosen, and what does not fit any more, is left alone. Their room is given back as any other's, when
a server reclaims their segments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .base import ChunkKey, RemoveReason
from .files import BLOCK_BYTES
from .index import Extent
from .nvme import NvmeTier
from .store import Store
from .store_dir import NamespaceFile

BATCH_CHUNKS = 512  # removed per call, so that servers' commits get their turn
DIGEST_PREFIX_MIN = 8  # hex digits: two namespaces that share them by chance are one pair in billions


@dataclass(frozen=True, slots=True)
class Selection:
    """Which chunks to remove: those for which all that is given holds.

    Attributes:
        namespace: a label, or `DIGEST_PREFIX_MIN` hex digits or more of a digest; empty for all.
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
    """The chunks of one namespace that a selection names.

    Attributes:
        scope: the namespace's scope in which they are.
        before_s: they were stored no later than then.
        never_read: they were not read back.
    """

    digest: bytes
    file: NamespaceFile
    scope: int
    before_s: float
    never_read: bool
    keys: tuple[ChunkKey, ...]
    size_bytes: int

    @property
    def label(self) -> str:
        return self.file.identity.label

    def takes(self, extent: Extent) -> bool:
        return extent.stored_s <= self.before_s and not (self.never_read and extent.hits)


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed from one namespace."""

    digest: bytes
    label: str
    chunks: int
    size_bytes: int


def choose(store: Store, selection: Selection) -> list[Chosen]:
    """What would be removed."""
    return list(_chosen(store, selection))


async def remove(store: Store, chosen: Chosen, told: Callable[[int], None]) -> Removed:
    """Remove the chunks for good: once this returns, neither a rebuild nor a power loss brings them back.

    `told` hears of each step's count. Cancellation: what was removed so far stays removed.

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
    chunks = size_bytes = 0
    try:
        for start in range(0, len(chosen.keys), BATCH_CHUNKS):
            still = _still(store, chosen, chosen.keys[start : start + BATCH_CHUNKS])
            await tier.remove(list(still), RemoveReason.REQUESTED)
            chunks, size_bytes = chunks + len(still), size_bytes + sum(still.values())
            told(len(still))
        await tier.flush()
    finally:
        await tier.close()
    return Removed(chosen.digest, chosen.label, chunks, size_bytes)


def _still(store: Store, chosen: Chosen, keys: Sequence[ChunkKey]) -> dict[ChunkKey, int]:
    """Those of the keys that are still to be removed, with their lengths."""
    scope, extents = store.index.find(chosen.digest, keys)
    return {
        key: extent.length_bytes
        for key, extent in zip(keys, extents, strict=True)
        if scope == chosen.scope and extent is not None and chosen.takes(extent)
    }


def _chosen(store: Store, selection: Selection) -> Iterator[Chosen]:
    before_s = time.time() - selection.older_than_s
    files = store.directory.namespaces()
    with store.index.read() as txn:
        records = txn.namespaces()
        for digest in _named(records, files, selection.namespace):
            scope = records[digest].scope
            none = Chosen(digest, files[digest], scope, before_s, selection.never_read, (), 0)
            found = {
                key: extent.length_bytes
                for _, key, extent in txn.extents(scope, selection.key_prefix)
                if none.takes(extent)
            }
            if found:
                yield replace(none, keys=tuple(found), size_bytes=sum(found.values()))


def _named(records: Iterable[bytes], files: dict[bytes, NamespaceFile], name: str) -> list[bytes]:
    """The namespaces that `name` means: those of that label, and only if there are none, by digest."""
    digests = [digest for digest in records if digest in files]
    if not name:
        return digests
    labelled = [digest for digest in digests if files[digest].identity.label == name]
    if labelled or len(name) < DIGEST_PREFIX_MIN:
        return labelled
    return [digest for digest in digests if digest.hex().startswith(name.lower())]
