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
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ...base import ChunkKey
from ...errors import TierError
from .records import EXTENT, MAP_BYTES_MIN, NAMESPACE, PAGE_BYTES, READERS_MAX, SCOPE, Extent
from .transaction import Tables, Transaction

T = TypeVar("T")

SPARE_READS = 16  # read transactions kept for reuse: loads, lookups and upkeep of one process at once
FULL_WAIT_S = 0.005  # one switch interval of an interpreter: then a reader that was held up is done
FULL_WAITS = 20  # a reader that is slower has stopped; stores then fail until it goes on or dies


class IndexDamaged(TierError):
    """The index is not readable, or not this store's."""


class IndexFull(TierError):
    """The index may not grow further; its store has to evict chunks first."""


class _MapFull(IndexFull):
    """LMDB found no free page: for good, or because some reader still sees the free ones."""


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
            scope = SCOPE.pack(NAMESPACE.unpack(raw)[0])
            return [get(scope + key) is not None for key in keys]

    def find(self, namespace: bytes, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        """The scope in force and each key's extent, None where it has none."""
        with _MAPPED, self._env.begin(db=self._tables.extents) as txn:
            get = txn.get
            raw = get(namespace, db=self._tables.namespaces)
            if not raw:
                return 0, [None] * len(keys)
            number = NAMESPACE.unpack(raw)[0]
            scope = SCOPE.pack(number)
            found = (get(scope + key) for key in keys)
            return number, [None if value is None else Extent(*EXTENT.unpack(value)) for value in found]

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


class _Mapped:
    """Maps LMDB's errors to the index's own. Not a generator, which would cost half of a lookup."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, lmdb.MapFullError):
            raise _MapFull("nvme", "the index has no room left") from error
        if isinstance(error, lmdb.Error):
            raise IndexDamaged("nvme", f"the index cannot be used: {error}") from error


_MAPPED = _Mapped()
