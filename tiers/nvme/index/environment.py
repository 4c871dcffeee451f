"""The index: where every chunk lies, in LMDB, shared by all processes that use the store.

Theory of operation. Four tables in one memory-mapped file:

    meta        name -> number           the store's uuid and format, the counters of numbers given out
    namespaces  digest -> record         the scope in force, what is in it, what was read from it
    segments    id -> record             state, generation, age, fill
    extents     scope + key -> record    where the chunk lies, its checksum, when it came, how often read

A *scope* is one epoch of one namespace. Raising the epoch gives the namespace a new scope, and every
older chunk is out of sight at once though no entry was touched; entries of past scopes leave with their
segments.

Write transactions exclude each other over all processes, so whatever must be decided by one process at a
time (who takes which segment, whether the cap has room) is decided inside one. They are not synced:
a commit is in the page cache, where other processes see it and a killed process leaves it. A power loss
may tear the file; the store then does not trust it and rebuilds it from the segments, which are synced.

LMDB does not write a page that one transaction has both taken and given up, so its file may end before the
last page that it knows. Here the file is as long as the map from the start, most of it a hole that costs
nothing: one that ends before its last page was cut, and reading it would kill the process.

Reads take no lock and wait for nobody.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from ...base import ChunkKey
from ...errors import TierError

T = TypeVar("T")

PAGE_BYTES = 4096
READERS_MAX = 512  # reader slots over all processes: threads that look up at the same moment
SPARE_READS = 16  # read transactions kept for reuse: loads, lookups and upkeep of one process at once
READER_BYTES = 64  # of one slot in the lock file
MAP_BYTES_MIN = 1024 * 1024  # room for a few thousand chunks, and for a change of them all

FULL_WAIT_S = 0.005  # one switch interval of an interpreter: then a reader that was held up is done
FULL_WAITS = 20  # a reader that is slower has stopped; stores then fail until it goes on or dies

_SCOPE = struct.Struct(">I")
_EXTENT = struct.Struct("<IIIIIIBB")
_SEGMENT = struct.Struct("<BIQIIQQ")
_NAMESPACE = struct.Struct("<IIQQQQQ")
_NUMBER = struct.Struct("<Q")


class IndexDamaged(TierError):
    """The index is not readable, or not this store's."""


class IndexFull(TierError):
    """The index may not grow further; its store has to forget chunks first."""


class _MapFull(IndexFull):
    """LMDB found no free page: for good, or because some reader still sees the free ones."""


class SegmentState(enum.IntEnum):
    """A segment's life. Whoever holds its claim may move it; a dead claimant's segment is anyone's."""

    FREE = 1  # nothing in it; may be taken and overwritten
    OPEN = 2  # its claimant appends
    SEALED = 3  # full, with its trailer
    RECLAIMING = 4  # its claimant is emptying it


LEGAL = {
    SegmentState.FREE: {SegmentState.OPEN},
    SegmentState.OPEN: {SegmentState.OPEN, SegmentState.SEALED, SegmentState.RECLAIMING},
    SegmentState.SEALED: {SegmentState.RECLAIMING},
    SegmentState.RECLAIMING: {SegmentState.FREE, SegmentState.RECLAIMING},
}


class Extent(NamedTuple):
    """Where a chunk lies and what is known about it."""

    segment: int
    generation: int
    block: int
    length_bytes: int
    checksum: int
    stored_s: int
    hits: int  # loads so far, saturating
    read_since: int  # whether it was read since it was last written: what a reclaim carries over


HITS_MAX = 255


class Segment(NamedTuple):
    state: SegmentState
    generation: int
    opened: int  # order of opening in the store
    end_block: int  # behind the last committed batch
    live_chunks: int
    live_bytes: int  # of chunks that the index refers to
    allocated_bytes: int


class Namespace(NamedTuple):
    scope: int
    epoch: int
    chunks: int
    chunk_bytes: int  # sum of their lengths
    hits: int
    hit_bytes: int
    useful_bytes: int = 0  # of chunks that are there and were ever read back


class Transaction:
    """One LMDB transaction, in the index's words. Belongs to the thread that began it."""

    __slots__ = ("_extents", "_meta", "_namespaces", "_segments", "_txn")

    def __init__(self, txn: Any, tables: Tables) -> None:
        self._txn = txn
        self._meta, self._namespaces, self._segments, self._extents = tables

    # Numbers.

    def number(self, name: str) -> int:
        """A counter; 0 where it was never set."""
        raw = self._txn.get(name.encode(), db=self._meta)
        return int(_NUMBER.unpack(raw)[0]) if raw else 0

    def set_number(self, name: str, value: int) -> None:
        if value != self.number(name):  # else the commit would take pages for nothing
            self._txn.put(name.encode(), _NUMBER.pack(value), db=self._meta)

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
        return Namespace(*_NAMESPACE.unpack(raw)) if raw else None

    def put_namespace(self, digest: bytes, namespace: Namespace) -> None:
        self._txn.put(digest, _NAMESPACE.pack(*namespace), db=self._namespaces)

    def drop_namespace(self, digest: bytes) -> None:
        self._txn.delete(digest, db=self._namespaces)

    def namespaces(self) -> dict[bytes, Namespace]:
        with self._txn.cursor(db=self._namespaces) as cursor:
            return {bytes(digest): Namespace(*_NAMESPACE.unpack(raw)) for digest, raw in cursor}

    # Segments.

    def segment(self, number: int) -> Segment | None:
        raw = self._txn.get(_SCOPE.pack(number), db=self._segments)
        return _segment(raw) if raw else None

    def put_segment(self, number: int, segment: Segment) -> None:
        before = self.segment(number)
        if before is not None and before.state is not segment.state:
            assert segment.state in LEGAL[before.state], f"{before.state.name} -> {segment.state.name}"
        self._txn.put(_SCOPE.pack(number), _SEGMENT.pack(*segment), db=self._segments)

    def drop_segment(self, number: int) -> None:
        self._txn.delete(_SCOPE.pack(number), db=self._segments)

    def segments(self) -> dict[int, Segment]:
        with self._txn.cursor(db=self._segments) as cursor:
            return {_SCOPE.unpack(number)[0]: _segment(raw) for number, raw in cursor}

    # Extents.

    def extent(self, scope: int, key: ChunkKey) -> Extent | None:
        raw = self._txn.get(_SCOPE.pack(scope) + key, db=self._extents)
        return Extent(*_EXTENT.unpack(raw)) if raw else None

    def put_extent(self, scope: int, key: ChunkKey, extent: Extent) -> None:
        self._txn.put(_SCOPE.pack(scope) + key, _EXTENT.pack(*extent), db=self._extents)

    def drop_extent(self, scope: int, key: ChunkKey) -> None:
        self._txn.delete(_SCOPE.pack(scope) + key, db=self._extents)

    def extents(
        self, scope: int | None = None, prefix: bytes = b""
    ) -> Iterator[tuple[int, ChunkKey, Extent]]:
        """Every extent as (scope, key, extent), of one scope and key prefix if given; not while writing."""
        start = b"" if scope is None else _SCOPE.pack(scope) + prefix
        with self._txn.cursor(db=self._extents) as cursor:
            if not cursor.set_range(start):
                return
            for name, raw in cursor:
                if not name.startswith(start):
                    return
                yield _SCOPE.unpack(name[:4])[0], name[4:], Extent(*_EXTENT.unpack(raw))

    def extents_count(self) -> int:
        return int(self._txn.stat(self._extents)["entries"])

    def tree_pages(self) -> int:
        """Pages that the extents take."""
        stat = self._txn.stat(self._extents)
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def tree_depth(self) -> int:
        return int(self._txn.stat(self._extents)["depth"])

    def last_commit(self) -> int:
        """Number of the last commit that this transaction sees."""
        return int(self._txn.id())


class Tables(NamedTuple):
    meta: Any
    namespaces: Any
    segments: Any
    extents: Any


class Index:
    """The index of one store, open in this process.

    Threads: reads from any thread, at the same time. Writes from any thread, one at a time.
    """

    def __init__(self, environment: _Environment) -> None:
        self._shared = environment
        self._env = environment.env
        self._tables = environment.tables
        self._closed = False

    @staticmethod
    def open(path: Path, map_bytes: int) -> Index:
        """Open or create the index in the directory `path`, which may take up to `map_bytes` ever.

        Raises:
            IndexDamaged: what is there is not an index.
        """
        return Index(_Environment.shared(path, map_bytes))

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view. Keep it short: pages that it sees are not reused while it lasts."""
        with _MAPPED, self._env.begin() as txn:
            yield Transaction(txn, self._tables)

    def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a write transaction, alone among all processes, and commit; undo all if it raises.

        Where pages are lacking that others still read, it waits a little and runs `change` again.

        Raises:
            IndexFull: the map is full; nothing was changed.
            IndexDamaged: LMDB found the file damaged.
        """
        for _ in range(FULL_WAITS):
            try:
                return self._write_once(change)
            except _MapFull:
                self.free_dead_readers()
                time.sleep(FULL_WAIT_S)
        return self._write_once(change)

    def _write_once(self, change: Callable[[Transaction], T]) -> T:
        with _MAPPED, self._env.begin(write=True) as txn:
            return change(Transaction(txn, self._tables))

    def scope_of(self, namespace: bytes) -> int:
        """The namespace's scope in force, 0 where there is none."""
        with self.read() as txn:
            found = txn.namespace(namespace)
            return found.scope if found else 0

    def has(self, namespace: bytes, keys: Sequence[ChunkKey]) -> list[bool]:
        """For each key whether the namespace has it now; about a microsecond a key."""
        with _MAPPED, self._env.begin(db=self._tables.extents) as txn:
            get = txn.get
            raw = get(namespace, db=self._tables.namespaces)
            if not raw:
                return [False] * len(keys)
            scope = _SCOPE.pack(_NAMESPACE.unpack(raw)[0])
            return [get(scope + key) is not None for key in keys]

    def find(self, namespace: bytes, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        """The scope in force and each key's extent, None where it has none."""
        with _MAPPED, self._env.begin(db=self._tables.extents) as txn:
            get = txn.get
            raw = get(namespace, db=self._tables.namespaces)
            if not raw:
                return 0, [None] * len(keys)
            number = _NAMESPACE.unpack(raw)[0]
            scope = _SCOPE.pack(number)
            found = (get(scope + key) for key in keys)
            return number, [None if value is None else Extent(*_EXTENT.unpack(value)) for value in found]

    def file_bytes(self) -> int:
        """Size of the index's pages: all that were ever used."""
        return _pages_bytes(self._env)

    def free_dead_readers(self) -> int:
        """Release what killed processes were reading; returns how many there were."""
        with _MAPPED:
            return int(self._env.reader_check())

    def sync(self) -> None:
        """Make every commit durable.

        Raises:
            IndexDamaged: the device refused.
        """
        with _MAPPED:
            self._env.sync(True)

    def close(self) -> None:
        """Give the index back; idempotent."""
        if not self._closed:
            self._closed = True
            self._shared.release()


class _Environment:
    """LMDB's environment, shared by all who open one index in this process.

    LMDB allows one per process and file, because closing a second one would drop the first one's locks.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.env = lmdb.open(
            str(path),
            map_size=max(MAP_BYTES_MIN, map_bytes),
            max_dbs=len(Tables._fields),
            max_readers=READERS_MAX,
            max_spare_txns=SPARE_READS,
            mode=0o600,
            sync=False,
            metasync=False,
            readahead=False,
        )
        try:
            self.tables = Tables(*(self.env.open_db(name.encode()) for name in Tables._fields))
            _stretch(path / "data.mdb", int(self.env.info()["map_size"]))
        except BaseException:
            self.env.close()
            raise
        self.users = 1

    @staticmethod
    def shared(path: Path, map_bytes: int) -> _Environment:
        with _OPEN_LOCK, _MAPPED:
            path.mkdir(mode=0o700, exist_ok=True)
            identity = _identity(path)
            environment = _OPEN.get(identity)
            if environment is None:
                _refuse_truncated(path)
                environment = _OPEN[identity] = _Environment(path, map_bytes)
                environment.identity = identity
            else:
                environment.users += 1
            return environment

    identity: tuple[int, int]

    def release(self) -> None:
        with _OPEN_LOCK:
            self.users -= 1
            if not self.users:
                del _OPEN[self.identity]
                self.env.close()


_OPEN: dict[tuple[int, int], _Environment] = {}
_OPEN_LOCK = threading.Lock()


def _identity(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _refuse_truncated(path: Path) -> None:
    """A file shorter than its own pages would be a SIGBUS at the first read beyond its end."""
    data = path / "data.mdb"
    if not data.exists() or data.stat().st_size == 0:
        return
    probe = lmdb.open(str(path), max_dbs=1, readonly=True, lock=False, create=False)
    try:
        needed = _pages_bytes(probe)
    finally:
        probe.close()
    if data.stat().st_size < needed:
        raise IndexDamaged("nvme", f"{data} is {data.stat().st_size} bytes long and should be {needed}")


def _pages_bytes(env: Any) -> int:
    return (int(env.info()["last_pgno"]) + 1) * PAGE_BYTES


def _stretch(data: Path, size_bytes: int) -> None:
    """Make the file as long as the map; no writer makes it longer, so this never cuts what one appends."""
    if data.stat().st_size < size_bytes:
        os.truncate(data, size_bytes)


def _segment(raw: bytes) -> Segment:
    state, *rest = _SEGMENT.unpack(raw)
    return Segment(SegmentState(state), *rest)


class _Mapped:
    """Tells LMDB's errors in the index's words. Not a generator, which would cost half of a lookup."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, lmdb.MapFullError):
            raise _MapFull("nvme", "the index has no room left") from error
        if isinstance(error, lmdb.Error):
            raise IndexDamaged("nvme", f"the index cannot be used: {error}") from error


_MAPPED = _Mapped()
