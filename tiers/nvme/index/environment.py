"""The index: where every chunk lies, in LMDB, shared by all processes that use the store.

Theory of operation. Eight tables in one memory-mapped file:

    meta        name -> number           the store's uuid and format, the counters of numbers given out
    namespaces  digest -> record         the scope in force, what is in it, what was read from it
    segments    id -> record             state, generation, age, fill
    ages        state + age + id         the segments of each state, the oldest first
    totals      state -> record          how many they are, and what they take
    extents     scope + key -> record    where the chunk lies, its checksum, when it came, how often read
    removals    scope + key -> record    when it was removed on request, while the log may still have it
    unread      age + id -> generation   segments whose tables are not in the index yet

A *scope* is one epoch of one namespace. Raising the epoch gives the namespace a new scope, and every
older chunk is out of sight at once though no entry was touched; entries of past scopes leave with their
segments.

Write transactions exclude each other over all processes, so whatever must be decided by one process at a
time (who takes which segment, whether the cap has room) is decided inside one. They are taken under a lock
of ours (`writer.py`), which nobody waits for without a bound. They are not synced: a commit is in the page
cache, where other processes see it and a killed process leaves it.

The file lies in shared memory (`memory.py`), so that no page of it waits for a drive. It is as long as the
map from the start: LMDB does not write a page that one transaction has both taken and given up, so a shorter
file could end before the last page that it knows, and reading beyond the end would kill the process. The lock
file is written through a mapping, and has its room from the start (`slots.py`).

Reads take no lock and wait for nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ...base import ChunkKey
from ...errors import TierUnavailable
from .datafile import DATA, DataFile, map_bytes_at
from .errors import IndexBusy, IndexDamaged, IndexFull, IndexStarved
from .records import EXTENT, NAMESPACE, READERS_MAX, SCOPE, Extent
from .slots import LOCKS, clear_own_slots, make_lock_file, slots_start
from .transaction import Tables, Transaction
from .writer import WRITER, WriterLock

__all__ = ["Index", "IndexBusy", "IndexDamaged", "IndexFull", "IndexStarved"]

T = TypeVar("T")

SPARE_READS = 16  # read transactions kept for reuse: loads, lookups and upkeep of one process at once
FULL_WAIT_S = 0.005  # one switch interval of an interpreter: then a reader that was held up is done
FULL_WAITS = 20  # a reader that is slower has stopped; stores then fail until it goes on or dies

# What the system says where it lacks something; LMDB passes on the text alone. The index is as good as ever.
_LACKS = tuple(os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN))

# A record of another size, or sums that fit in none, are what a torn or stale page looks like.
_DAMAGE = (lmdb.Error, struct.error, IndexDamaged)


class _MapFull(IndexFull):
    """LMDB found no free page: for good, or because some reader still sees the free ones."""


class Index:
    """The index of one store, open in this process.

    Threads: reads from any thread, at the same time. Writes from any thread, one at a time.

    Attributes:
        damaged: whether it was found damaged since it was opened.
    """

    def __init__(self, environment: _Environment) -> None:
        self._shared = environment
        self._env = environment.env
        self._tables = environment.tables
        self._closed = False
        self.damaged = False

    @staticmethod
    def open(path: Path, map_bytes: int = 0, *, alone: bool = False) -> Index:
        """Open or create the index in the directory `path`, which may take up to `map_bytes` ever.

        Only who is `alone` may make the map larger. Everybody else takes the map as it is.

        Raises:
            IndexDamaged: what is there is not an index, or not all of one.
            IndexFull: there is no room for it.
            IndexStarved: no descriptor or no memory is left; what is there may be as good as ever.
            TierUnavailable: this process was forked from one that has it open.
        """
        return Index(_Environment.shared(path, map_bytes, alone=alone))

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view. Keep it short: pages that it sees are not reused while it lasts."""
        with self._mapped(), self._begin() as txn:
            yield Transaction(txn, self._tables, self._shared)

    def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a write transaction, alone among all processes, and commit; undo all if it raises.

        Where pages are lacking that others still read, it waits a little and runs `change` again.

        Raises:
            IndexBusy: another writer does not let go; nothing was changed.
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
        if self._shared.is_read_only:
            raise IndexBusy("nvme", "the index was held by another process when it was opened")
        with self._shared.writer.held(), self._mapped():
            self._shared.take_room()
            with self._env.begin(write=True) as txn:
                return change(Transaction(txn, self._tables, self._shared))

    def scope_of(self, namespace: bytes) -> int:
        """The namespace's scope in force, 0 where there is none."""
        with self.read() as txn:
            found = txn.namespace(namespace)
            return found.scope if found else 0

    def has(self, namespace: bytes, keys: Sequence[ChunkKey]) -> list[bool]:
        """For each key whether the namespace has it now; about a microsecond a key."""
        with self._mapped(), self._begin(self._tables.extents) as txn:
            get = txn.get
            raw = get(namespace, db=self._tables.namespaces)
            if not raw:
                return [False] * len(keys)
            scope = SCOPE.pack(NAMESPACE.unpack(raw)[0])
            return [get(scope + key) is not None for key in keys]

    def find(self, namespace: bytes, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        """The scope in force and each key's extent, None where it has none."""
        with self._mapped(), self._begin(self._tables.extents) as txn:
            get = txn.get
            raw = get(namespace, db=self._tables.namespaces)
            if not raw:
                return 0, [None] * len(keys)
            number = NAMESPACE.unpack(raw)[0]
            scope = SCOPE.pack(number)
            found = (get(scope + key) for key in keys)
            made, unpack = Extent._make, EXTENT.unpack  # of a load's time for 1,000 keys this is a third
            return number, [None if value is None else made(unpack(value)) for value in found]

    @property
    def is_read_only(self) -> bool:
        """Whether another process held the index for writing when it was opened, and did not let go."""
        return self._shared.is_read_only

    def file_bytes(self) -> int:
        """Size of the index's pages: all that were ever used."""
        return self._shared.pages_bytes()

    def free_dead_readers(self) -> int:
        """Release what killed processes were reading; returns how many there were."""
        with self._mapped():
            return int(self._env.reader_check())

    def copy_to(self, fd: int) -> None:
        """Write a compact copy of the index, as of one moment, to a file.

        Raises:
            OSError: it could not be written, or read.
        """
        try:
            self._env.copyfd(fd, compact=True)
        except lmdb.Error as error:  # LMDB does not say which of the two files failed it
            self.damaged |= isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError))
            code = errno.ENOSPC if isinstance(error, lmdb.DiskError) else errno.EIO
            raise OSError(code, f"the copy failed: {error}") from error

    def close(self) -> None:
        """Give the index back; idempotent."""
        if not self._closed:
            self._closed = True
            self._shared.release()

    def _begin(self, db: Any = None) -> Any:
        return _begun(self._env, db)

    def _mapped(self) -> _Mapped:
        return _Mapped(self)


class _Environment:
    """LMDB's environment, shared by all who open one index in this process.

    LMDB allows one per process and file, because closing a second one would drop the first one's locks.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        with contextlib.ExitStack() as undo:
            self.writer = WriterLock(path)
            undo.callback(self.writer.close)
            self._locks_fd = os.open(path / LOCKS, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, self._locks_fd)  # after LMDB: see `slots.py`
            self.is_read_only = False
            try:
                with self.writer.held():  # LMDB begins a write transaction to look for its tables
                    self.env, self.tables = _opened(path, map_bytes, readonly=False)
            except IndexBusy:
                self.is_read_only = True
                self.env, self.tables = _opened(path, map_bytes, readonly=True)
            undo.callback(self.env.close)
            clear_own_slots(self._locks_fd, slots_start(int(self.env.info()["max_readers"])))
            self.page_bytes = int(self.env.stat()["psize"])
            self._data = DataFile(path / DATA, int(self.env.info()["map_size"]), self.page_bytes)
            undo.callback(self._data.close)
            _take_slots(self.env)
            undo.pop_all()
        self.users = 1

    @staticmethod
    def shared(path: Path, map_bytes: int, *, alone: bool) -> _Environment:
        with _OPEN_LOCK, _MAPPED:
            path.mkdir(mode=0o700, exist_ok=True)
            identity = _identity(path)
            environment = _OPEN.get(identity)
            if environment is None:
                _refuse_child(path, identity)
                _prepare(path, alone=alone)
                environment = _Environment(path, map_bytes_at(path / DATA, map_bytes, alone=alone))
                _OPEN[identity] = environment
                environment.identity = identity
            else:
                environment.users += 1
            return environment

    identity: tuple[int, int]

    def pages_bytes(self) -> int:
        return (int(self.env.info()["last_pgno"]) + 1) * self.page_bytes

    def limit_bytes(self) -> int:
        return self._data.limit_bytes(self.pages_bytes())

    def take_room(self) -> None:
        """Take room for the next change, ahead of LMDB; under the writer lock."""
        self._data.take_room(self.pages_bytes())

    def release(self) -> None:
        with _OPEN_LOCK:
            self.users -= 1
            if not self.users:
                del _OPEN[self.identity]
                self.env.close()
                os.close(self._locks_fd)
                self.writer.close()
                self._data.close()


_OPEN: dict[tuple[int, int], _Environment] = {}
_OPEN_LOCK = threading.Lock()
_OF_PARENT: list[_Environment] = []  # never closed: LMDB would take the parent's locks for this process' own


def _forget_parents() -> None:
    """In a forked child: what the parent has open is the parent's."""
    global _OPEN_LOCK
    _OF_PARENT.extend(_OPEN.values())
    _OPEN.clear()
    _OPEN_LOCK = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents)


def _identity(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _refuse_child(path: Path, identity: tuple[int, int]) -> None:
    """Refuse what the LMDB binding would refuse: it remembers over a fork what the parent has open."""
    if any(identity == environment.identity for environment in _OF_PARENT):
        raise TierUnavailable(
            "nvme",
            f"this process was forked from one that has the index at {path} open, and cannot open it too; "
            f"start it by spawn instead (multiprocessing.get_context('spawn')), or fork before the open",
        )


def _prepare(path: Path, *, alone: bool) -> None:
    """Put the files in order that LMDB is about to map; no environment of this process has them open."""
    is_new = not (path / DATA).exists() or not (path / DATA).stat().st_size
    if is_new or alone:
        (path / WRITER).touch(mode=0o600)
        if not (path / LOCKS).exists():
            make_lock_file(path / LOCKS)
    for name in (WRITER, LOCKS):
        if not (path / name).exists():  # a new one would be a second lock beside what others have
            raise IndexDamaged("nvme", f"{path / name} is missing")
    if not is_new:
        _refuse_truncated(path)


def _opened(path: Path, map_bytes: int, *, readonly: bool) -> tuple[Any, Tables]:
    env = lmdb.open(
        str(path),
        map_size=map_bytes,
        max_dbs=len(Tables._fields),
        max_readers=READERS_MAX,
        max_spare_txns=SPARE_READS,
        mode=0o600,
        sync=False,
        metasync=False,
        readahead=False,
        readonly=readonly,
    )
    try:
        return env, Tables(*(env.open_db(name.encode(), create=not readonly) for name in Tables._fields))
    except BaseException:
        env.close()
        raise


def _take_slots(env: Any) -> None:
    """Take reader slots ahead: taking one later means LMDB's lock on them, which somebody paused may hold.

    Where others hold most of them, one is enough to begin with.
    """
    with contextlib.ExitStack() as reads:
        reads.enter_context(_begun(env))
        with contextlib.suppress(lmdb.ReadersFullError):
            for _ in range(SPARE_READS - 1):
                reads.enter_context(_begun(env))


def _begun(env: Any, db: Any = None) -> Any:
    """A read transaction; before it is refused for want of a slot, those of the dead are freed."""
    try:
        return env.begin(db=db)
    except lmdb.ReadersFullError:
        env.reader_check()
        return env.begin(db=db)


def _refuse_truncated(path: Path) -> None:
    """A file shorter than its own pages would be a SIGBUS at the first read beyond its end."""
    data = path / DATA
    probe = lmdb.open(str(path), max_dbs=1, readonly=True, lock=False, create=False)
    try:
        needed = (int(probe.info()["last_pgno"]) + 1) * int(probe.stat()["psize"])
    finally:
        probe.close()
    if data.stat().st_size < needed:
        raise IndexDamaged("nvme", f"{data} is {data.stat().st_size} bytes long and should be {needed}")


class _Mapped:
    """Maps LMDB's errors to the index's own. Not a generator, which would cost half of a lookup."""

    __slots__ = ("_index",)

    def __init__(self, index: Index | None = None) -> None:
        self._index = index

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, lmdb.MapFullError):
            raise _MapFull("nvme", "the index has no room left") from error
        if isinstance(error, lmdb.ReadersFullError):
            raise IndexStarved("nvme", "all reader slots of the index are taken") from error
        if isinstance(error, (lmdb.MemoryError, lmdb.TlsFullError)):
            raise IndexStarved("nvme", f"the index gets no memory: {error}") from error
        if isinstance(error, lmdb.Error) and str(error).endswith(_LACKS):
            raise IndexStarved("nvme", f"the index cannot be opened: {error}") from error
        if isinstance(error, lmdb.DiskError):
            raise IndexFull("nvme", f"there is no room for the index: {error}") from error
        if isinstance(error, _DAMAGE):
            if self._index is not None:
                self._index.damaged = True
            if not isinstance(error, IndexDamaged):
                raise IndexDamaged("nvme", f"the index cannot be used: {error}") from error


_MAPPED = _Mapped()
