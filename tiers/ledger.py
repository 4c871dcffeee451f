"""Changes of extents, with the sums that go with them, inside one write transaction."""

from __future__ import annotations

from .base import ChunkKey
from .index import HITS_MAX, Extent, Namespace, Segment, Transaction


class Ledger:
    """Keeps the counts of segments and namespaces in step with the extents.

    Belongs to one write transaction and its thread. Nothing but the extents is written before `close`.
    """

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn
        self._namespaces = txn.namespaces()
        self._digests = {namespace.scope: digest for digest, namespace in self._namespaces.items()}
        self._segments: dict[int, Segment] = {}
        self._changed: set[bytes] = set()

    def in_force(self, scope: int) -> bool:
        """Whether lookups of some namespace look into this scope now."""
        return scope in self._digests

    def segment(self, number: int) -> Segment | None:
        found = self._segments.get(number) or self._txn.segment(number)
        if found is not None:
            self._segments[number] = found
        return found

    def set_segment(self, number: int, segment: Segment) -> None:
        self._segments[number] = segment

    def extent(self, scope: int, key: ChunkKey) -> Extent | None:
        return self._txn.extent(scope, key)

    def put(self, scope: int, key: ChunkKey, extent: Extent) -> None:
        """Say where the chunk lies from now on; wherever it lay before no longer counts."""
        before = self._txn.extent(scope, key)
        if before is not None:
            self._count(scope, before, -1)
        self._txn.put_extent(scope, key, extent)
        self._count(scope, extent, 1)

    def forget(self, scope: int, key: ChunkKey, extent: Extent) -> None:
        """Drop what `extent` says is there."""
        self._txn.drop_extent(scope, key)
        self._count(scope, extent, -1)

    def touch(self, scope: int, key: ChunkKey, place: Extent, times: int) -> None:
        """Count `times` loads of the chunk, if it is still the one at `place`."""
        now = self._txn.extent(scope, key)
        if now is None or now[:3] != place[:3]:
            return
        hits = min(HITS_MAX, now.hits + times)
        if (hits, 1) != (now.hits, now.read_since):
            self._txn.put_extent(scope, key, now._replace(hits=hits, read_since=1))
        digest = self._digests.get(scope)
        if digest is not None:
            namespace = self._namespaces[digest]
            self._set(
                digest,
                namespace._replace(
                    hits=namespace.hits + times,
                    hit_bytes=namespace.hit_bytes + times * now.length_bytes,
                    useful_bytes=namespace.useful_bytes + (0 if now.hits else now.length_bytes),
                ),
            )

    def close(self) -> None:
        """Write the sums."""
        for number, segment in self._segments.items():
            self._txn.put_segment(number, segment)
        for digest in self._changed:
            self._txn.put_namespace(digest, self._namespaces[digest])

    def _count(self, scope: int, extent: Extent, sign: int) -> None:
        segment = self.segment(extent.segment)
        if segment is not None and segment.generation == extent.generation:
            self._segments[extent.segment] = segment._replace(
                live_chunks=segment.live_chunks + sign,
                live_bytes=segment.live_bytes + sign * extent.length_bytes,
            )
        digest = self._digests.get(scope)
        if digest is not None:
            namespace = self._namespaces[digest]
            self._set(
                digest,
                namespace._replace(
                    chunks=namespace.chunks + sign,
                    chunk_bytes=namespace.chunk_bytes + sign * extent.length_bytes,
                    useful_bytes=namespace.useful_bytes + (sign * extent.length_bytes if extent.hits else 0),
                ),
            )

    def _set(self, digest: bytes, namespace: Namespace) -> None:
        self._namespaces[digest] = namespace
        self._changed.add(digest)
