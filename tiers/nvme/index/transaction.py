"""One transaction of the index: records read, put and dropped."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from ...base import ChunkKey
from .errors import IndexDamaged
from .records import (
    AGE,
    EXTENT,
    LEGAL,
    NAMESPACE,
    NUMBER,
    REMOVAL,
    SCOPE,
    SEGMENT,
    STANDING,
    TOTALS,
    UNREAD,
    Extent,
    Namespace,
    Removal,
    Segment,
    SegmentState,
    Totals,
    Unread,
    decode_segment,
)

OTHER_PAGES = 64  # of a compact copy, for the other tables


class Transaction:
    """One LMDB transaction, in the index's words. Belongs to the thread that began it."""

    __slots__ = (
        "_ages",
        "_extents",
        "_meta",
        "_namespaces",
        "_removals",
        "_room",
        "_segments",
        "_totals",
        "_txn",
        "_unread",
    )

    def __init__(self, txn: Any, tables: Tables, room: MapRoom) -> None:
        self._txn, self._room = txn, room
        self._meta, self._namespaces, self._segments, self._ages, self._totals = tables[:5]
        self._extents, self._removals, self._unread = tables[5:]

    # Numbers.

    def number(self, name: str) -> int:
        """A counter; 0 where it was never set."""
        raw = self._txn.get(name.encode(), db=self._meta)
        return int(NUMBER.unpack(raw)[0]) if raw else 0

    def set_number(self, name: str, value: int) -> None:
        if value != self.number(name):  # else the commit would take pages for nothing
            self._txn.put(name.encode(), NUMBER.pack(value), db=self._meta)

    def next_number(self, name: str) -> int:
        """Raise a counter and return its new value: 1 the first time."""
        value = self.number(name) + 1
        self.set_number(name, value)
        return value

    def store_uuid(self) -> bytes:
        return bytes(self._txn.get(b"store", db=self._meta) or b"")

    def set_store_uuid(self, uuid: bytes) -> None:
        self._txn.put(b"store", uuid, db=self._meta)

    # Namespaces.

    def namespace(self, digest: bytes) -> Namespace | None:
        raw = self._txn.get(digest, db=self._namespaces)
        return Namespace(*NAMESPACE.unpack(raw)) if raw else None

    def put_namespace(self, digest: bytes, namespace: Namespace) -> None:
        self._txn.put(digest, NAMESPACE.pack(*namespace), db=self._namespaces)

    def drop_namespace(self, digest: bytes) -> None:
        self._txn.delete(digest, db=self._namespaces)

    def namespaces(self) -> dict[bytes, Namespace]:
        with self._txn.cursor(db=self._namespaces) as cursor:
            return {bytes(digest): Namespace(*NAMESPACE.unpack(raw)) for digest, raw in cursor}

    def namespaces_count(self) -> int:
        return int(self._txn.stat(self._namespaces)["entries"])

    # Segments.

    def segment(self, number: int) -> Segment | None:
        raw = self._txn.get(SCOPE.pack(number), db=self._segments)
        return decode_segment(raw) if raw else None

    def put_segment(self, number: int, segment: Segment) -> None:
        before = self.segment(number)
        if before is not None and before.state is not segment.state:
            assert segment.state in LEGAL[before.state], f"{before.state.name} -> {segment.state.name}"
        self._txn.put(SCOPE.pack(number), SEGMENT.pack(*segment), db=self._segments)
        self._stand(number, before, segment)

    def drop_segment(self, number: int) -> None:
        before = self.segment(number)
        self._txn.delete(SCOPE.pack(number), db=self._segments)
        self._stand(number, before, None)

    def _stand(self, number: int, before: Segment | None, after: Segment | None) -> None:
        """Keep the order of age and the totals in step with a record."""
        was, now = (_standing(number, segment) for segment in (before, after))
        if was == now:
            return
        if before is not None:
            self._txn.delete(STANDING.pack(before.state, before.opened, number), db=self._ages)
            self._count(before, -1)
        if after is not None:
            self._txn.put(STANDING.pack(after.state, after.opened, number), b"", db=self._ages)
            self._count(after, 1)

    def _count(self, segment: Segment, sign: int) -> None:
        count, allocated_bytes = self.totals(segment.state)
        totals = TOTALS.pack(count + sign, allocated_bytes + sign * segment.allocated_bytes)
        self._txn.put(bytes([segment.state]), totals, db=self._totals)

    def totals(self, *states: SegmentState) -> Totals:
        """What all segments of these states are together, of all where none is given."""
        raws = (self._txn.get(bytes([state]), db=self._totals) for state in states or SegmentState)
        sums = [TOTALS.unpack(raw) for raw in raws if raw]
        return Totals(sum(count for count, _ in sums), sum(size_bytes for _, size_bytes in sums))

    def by_age(self, *states: SegmentState) -> Iterator[tuple[int, Segment]]:
        """The segments of these states by number, the oldest first; not while writing."""
        for _, number in heapq.merge(*(self._ages_in(state) for state in states)):
            segment = self.segment(number)
            if segment is None:
                raise IndexDamaged("nvme", f"the index has an age of segment {number}, and no record")
            yield number, segment

    def oldest_opened(self, *, other_than: int) -> int | None:
        """When the oldest segment, of whatever state, was opened; but for one."""
        firsts = [
            next((opened for opened, number in self._ages_in(state) if number != other_than), None)
            for state in SegmentState
        ]
        return min((opened for opened in firsts if opened is not None), default=None)

    def _ages_in(self, state: SegmentState) -> Iterator[tuple[int, int]]:
        with self._txn.cursor(db=self._ages) as cursor:
            if not cursor.set_range(bytes([state])):
                return
            for raw in cursor.iternext(values=False):
                found, opened, number = STANDING.unpack(raw)
                if found != state:
                    return
                yield opened, number

    def segments(self) -> dict[int, Segment]:
        with self._txn.cursor(db=self._segments) as cursor:
            return {SCOPE.unpack(number)[0]: decode_segment(raw) for number, raw in cursor}

    # Extents.

    def extent(self, scope: int, key: ChunkKey) -> Extent | None:
        raw = self._txn.get(SCOPE.pack(scope) + key, db=self._extents)
        return Extent(*EXTENT.unpack(raw)) if raw else None

    def put_extent(self, scope: int, key: ChunkKey, extent: Extent) -> None:
        self._txn.put(SCOPE.pack(scope) + key, EXTENT.pack(*extent), db=self._extents)

    def drop_extent(self, scope: int, key: ChunkKey) -> None:
        self._txn.delete(SCOPE.pack(scope) + key, db=self._extents)

    def extents(
        self, scope: int | None = None, prefix: bytes = b""
    ) -> Iterator[tuple[int, ChunkKey, Extent]]:
        """Every extent as (scope, key, extent), of one scope and key prefix if given; not while writing."""
        start = b"" if scope is None else SCOPE.pack(scope) + prefix
        with self._txn.cursor(db=self._extents) as cursor:
            if not cursor.set_range(start):
                return
            for name, raw in cursor:
                if not name.startswith(start):
                    return
                yield SCOPE.unpack(name[:4])[0], name[4:], Extent(*EXTENT.unpack(raw))

    def extents_after(
        self, position: bytes, count: int
    ) -> tuple[list[tuple[int, ChunkKey, Extent]], bytes | None]:
        """Up to `count` extents from a position on (at first empty), and the next one, None at the end."""
        found: list[tuple[int, ChunkKey, Extent]] = []
        with self._txn.cursor(db=self._extents) as cursor:
            if cursor.set_range(position):
                for name, raw in cursor:
                    if len(found) == count:
                        return found, bytes(name)
                    found.append((SCOPE.unpack(name[:4])[0], name[4:], Extent(*EXTENT.unpack(raw))))
        return found, None

    def extents_count(self) -> int:
        return int(self._txn.stat(self._extents)["entries"])

    def tree_bytes(self) -> int:
        """What the extents take."""
        stat = self._txn.stat(self._extents)
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * self._room.page_bytes

    def copy_bytes(self) -> int:
        """What a compact copy takes: the extents, and little beside them."""
        return self.tree_bytes() + OTHER_PAGES * self._room.page_bytes

    def fill(self) -> float:
        """Which part of what the index may take the extents take."""
        return self.tree_bytes() / self._room.limit_bytes()

    def pages_max(self) -> int:
        """How many pages the index may have."""
        return self._room.limit_bytes() // self._room.page_bytes

    # Removals.

    def removal(self, scope: int, key: ChunkKey) -> Removal | None:
        raw = self._txn.get(SCOPE.pack(scope) + key, db=self._removals)
        return Removal(*REMOVAL.unpack(raw)) if raw else None

    def put_removal(self, scope: int, key: ChunkKey, removal: Removal) -> None:
        """Note a removal, unless a later one is noted."""
        before = self.removal(scope, key)
        if before is None or before.order < removal.order:
            self._txn.put(SCOPE.pack(scope) + key, REMOVAL.pack(*removal), db=self._removals)

    def forget_removals(self, oldest: int, position: bytes, count: int) -> bytes | None:
        """Of `count` removals from a position on, drop those from before the segment opened as `oldest`.

        Returns where to go on, None at the end.
        """
        seen = 0
        with self._txn.cursor(db=self._removals) as cursor:
            there = cursor.set_range(position)
            while there:
                if seen == count:
                    return bytes(cursor.key())
                seen += 1
                old = Removal(*REMOVAL.unpack(cursor.value())).opened < oldest
                there = (cursor.delete() and bool(cursor.key())) if old else cursor.next()
        return None

    # Segments that are still to be read.

    def unread(self) -> list[Unread]:
        """Them all, the oldest first."""
        with self._txn.cursor(db=self._unread) as cursor:
            return [Unread(*AGE.unpack(age), *UNREAD.unpack(raw)) for age, raw in cursor]

    def newest_unread(self) -> Unread | None:
        with self._txn.cursor(db=self._unread) as cursor:
            if not cursor.last():
                return None
            return Unread(*AGE.unpack(cursor.key()), *UNREAD.unpack(cursor.value()))

    def put_unread(self, one: Unread) -> None:
        self._txn.put(AGE.pack(*one[:2]), UNREAD.pack(one.generation), db=self._unread)

    def drop_unread(self, one: Unread) -> None:
        self._txn.delete(AGE.pack(*one[:2]), db=self._unread)

    def last_commit(self) -> int:
        """Number of the last commit that this transaction sees."""
        return int(self._txn.id())


def _standing(number: int, segment: Segment | None) -> tuple[int, ...]:
    """All of a record that the order of age and the totals are made of."""
    return (number, segment.state, segment.opened, segment.allocated_bytes) if segment is not None else ()


class MapRoom(Protocol):
    """The sizes of the map that a transaction works in."""

    page_bytes: int

    def limit_bytes(self) -> int: ...


class Tables(NamedTuple):
    meta: Any
    namespaces: Any
    segments: Any
    ages: Any
    totals: Any
    extents: Any
    removals: Any
    unread: Any
