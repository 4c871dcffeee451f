"""Changes of extents, with the sums that go with them, inside one write transaction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from ...base import ChunkKey
from .records import HITS_MAX, Extent, Segment
from .transaction import Transaction


class Ledger:
    """Keeps the counts of segments and namespaces in step with the extents.

    Belongs to one write transaction and its thread. Nothing but the extents is written before `close`:
    until then the sums are differences, since a batch has many chunks of one segment and one namespace.
    """

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn
        self._namespaces = {namespace.scope: digest for digest, namespace in txn.namespaces().items()}
        self._segments: dict[int, Segment] = {}
        # What was added: to each life of a segment, to each scope.
        self._lives: dict[tuple[int, int], _Sums] = defaultdict(_Sums)
        self._scopes: dict[int, _Sums] = defaultdict(_Sums)

    def in_force(self, scope: int) -> bool:
        """Whether lookups of some namespace look into this scope now."""
        return scope in self._namespaces

    def segment(self, number: int) -> Segment | None:
        """The segment's record, without what this ledger has counted."""
        found = self._segments.get(number) or self._txn.segment(number)
        if found is not None:
            self._segments[number] = found
        return found

    def set_segment(self, number: int, segment: Segment) -> None:
        self._segments[number] = segment

    def extent(self, scope: int, key: ChunkKey) -> Extent | None:
        return self._txn.extent(scope, key)

    def put(self, scope: int, key: ChunkKey, before: Extent | None, extent: Extent) -> None:
        """Say where the chunk lies from now on; `before`, where the index has it, no longer counts."""
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
        now = self._hit(scope, key, place, times)
        if now is not None:
            sums = self._scopes[scope]
            sums.hits += times
            sums.hit_bytes += times * now.length_bytes

    def use(self, scope: int, key: ChunkKey, place: Extent) -> None:
        """Note a use of the chunk in another tier, if it is still the one at `place`; no load of this one."""
        self._hit(scope, key, place, 1)

    def close(self) -> None:
        """Write the sums."""
        for (number, generation), sums in self._lives.items():
            segment = self.segment(number)
            if segment is not None and segment.generation == generation:
                self._segments[number] = segment._replace(
                    live_chunks=segment.live_chunks + sums.chunks,
                    live_bytes=segment.live_bytes + sums.chunk_bytes,
                )
        for number, segment in self._segments.items():
            self._txn.put_segment(number, segment)
        for scope, sums in self._scopes.items():
            digest = self._namespaces.get(scope)
            namespace = self._txn.namespace(digest) if digest is not None else None
            if digest is not None and namespace is not None:
                raised = {name: getattr(namespace, name) + amount for name, amount in vars(sums).items()}
                self._txn.put_namespace(digest, namespace._replace(**raised))

    def _hit(self, scope: int, key: ChunkKey, place: Extent, times: int) -> Extent | None:
        """Raise the chunk's hits; returns its record from before, None where it is no longer at `place`."""
        now = self._txn.extent(scope, key)
        if now is None or now[:3] != place[:3]:
            return None
        used = now._replace(hits=min(HITS_MAX, now.hits + times), used_at=self._txn.number("opened"))
        if used != now:
            self._txn.put_extent(scope, key, used)
        if not now.hits:
            self._scopes[scope].useful_bytes += now.length_bytes
        return now

    def _count(self, scope: int, extent: Extent, sign: int) -> None:
        size_bytes = sign * extent.length_bytes
        for sums in (self._lives[extent[:2]], self._scopes[scope]):
            sums.chunks += sign
            sums.chunk_bytes += size_bytes
            if extent.hits:
                sums.useful_bytes += size_bytes


@dataclass
class _Sums:
    """Differences to the fields of those names."""

    chunks: int = 0
    chunk_bytes: int = 0
    hits: int = 0
    hit_bytes: int = 0
    useful_bytes: int = 0
