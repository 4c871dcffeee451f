"""Touches and page-locks an arena's pages in the background, piece by piece, while it is in use.

Each thread takes a piece, touches its pages and registers it with the device, until none is left. Touching
does not change a byte, so others may write at the same time. The processes of a server share the pages: each
starts at another piece, and maps the pages that others have touched already.

A piece is some whole slots. A device treats each registered piece as a separate allocation, and refuses a
copy that begins in one and ends outside of it (CUDA driver API, "API synchronization behavior"). So no copy
may cross a multiple of `piece_bytes`, counted from the first slot.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
from collections import deque
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

PIECE_BYTES = 256 << 20  # large enough that 1 TiB takes a few thousand registrations, not millions

TOUCH_BYTES = 4 << 20  # a call holds the process's memory map; whoever wants to change it waits about 1 ms

THREADS_MAX = 8  # zeroing pages is bound by memory, not by cores

_SLOT_ALIGNMENT_BYTES = 4096

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, from Linux 5.14

_madvise = ctypes.CDLL(None, use_errno=True).madvise  # mmap.madvise would hold the interpreter's lock
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Piece(NamedTuple):
    """Some whole slots, side by side."""

    address: int
    size_bytes: int


class Registrar(Protocol):
    """Page-locks memory for a device, on any thread."""

    def register(self, piece: Piece) -> None:
        """Page-lock a piece.

        Raises:
            RuntimeError: the device refuses.
        """
        ...

    def unregister(self, piece: Piece) -> None:
        """Undo that; errors are ignored."""
        ...


class Pinning:
    """Makes an arena's pages ready.

    Threads: `begin` and `end` belong to the owner; the figures may be read anywhere.
    """

    def __init__(self, address: int, slot_bytes: int, slot_count: int, *, start: float) -> None:
        """Lay out the pieces; `start` is the fraction of them to skip at first."""
        self.piece_bytes = _piece_slots(slot_bytes) * slot_bytes
        end = address + slot_bytes * slot_count
        starts = range(address, end, self.piece_bytes)
        pieces = [Piece(begin, min(self.piece_bytes, end - begin)) for begin in starts]
        first = int(start * len(pieces))
        self._pieces_count = len(pieces)
        self._registrar: Registrar | None = None
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        # Mutable state, under the lock:
        self._lock = threading.Lock()
        self._left = deque(pieces[first:] + pieces[:first])
        self._touched_bytes = 0
        self._pinned: list[Piece] = []
        self._failures: set[str] = set()

    @property
    def touched_bytes(self) -> int:
        """Bytes that this process has touched, or found touched."""
        with self._lock:
            return self._touched_bytes

    @property
    def pinned_bytes(self) -> int:
        """Bytes that are page-locked for this process's device."""
        with self._lock:
            return sum(piece.size_bytes for piece in self._pinned)

    @property
    def is_whole(self) -> bool:
        """Whether every piece is page-locked."""
        with self._lock:
            return len(self._pinned) == self._pieces_count

    @property
    def is_working(self) -> bool:
        """Whether some pages are still to be made ready."""
        return any(thread.is_alive() for thread in self._threads)

    def begin(self, registrar: Registrar | None) -> None:
        """Start the threads; without a registrar pages are only touched. A second call does nothing."""
        if self._threads or self._stopped.is_set():
            return
        self._registrar = registrar
        count = min(THREADS_MAX, len(os.sched_getaffinity(0)), len(self._left))
        names = [f"kvtier-pinning-{index}" for index in range(count)]
        # Daemons: a process that ends without `end` does not first touch hundreds of GiB.
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return when every page is ready or has failed."""
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Stop within a piece's time and undo the page-locking; idempotent."""
        self._stopped.set()
        self.wait()
        while self._pinned:
            assert self._registrar is not None, "only a registrar pins"
            self._registrar.unregister(self._pinned.pop())

    def _run(self) -> None:
        while not self._stopped.is_set() and (piece := self._next()) is not None:
            self._touch(piece)
            self._register(piece)

    def _next(self) -> Piece | None:
        with self._lock:
            return self._left.popleft() if self._left else None

    def _touch(self, piece: Piece) -> None:
        end = piece.address + piece.size_bytes
        for address in range(piece.address, end, TOUCH_BYTES):
            size_bytes = min(TOUCH_BYTES, end - address)
            if self._stopped.is_set() or self._has_failed("touched"):
                return
            try:
                populate(address, size_bytes)
            except OSError as error:
                self._fail("touched", error)
                return
            with self._lock:
                self._touched_bytes += size_bytes

    def _register(self, piece: Piece) -> None:
        if self._registrar is None or self._stopped.is_set() or self._has_failed("page-locked"):
            return
        try:
            self._registrar.register(piece)
        except RuntimeError as error:
            self._fail("page-locked", error)
            return
        with self._lock:
            self._pinned.append(piece)

    def _has_failed(self, what: str) -> bool:
        with self._lock:
            return what in self._failures

    def _fail(self, what: str, error: Exception) -> None:
        with self._lock:
            if what in self._failures:
                return
            self._failures.add(what)
        logger.warning("pinned: memory cannot be %s in advance; transfers may be slower: %s", what, error)


def populate(address: int, size_bytes: int) -> None:
    """Give the range pages of its own, writable, without changing a byte; releases the interpreter's lock.

    Raises:
        OSError: there is no memory, or the kernel is too old.
    """
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    while _madvise(start, address + size_bytes - start, _POPULATE_WRITE) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))


def _piece_slots(slot_bytes: int) -> int:
    """Whole slots, and whole pages: a page that two pieces share could be registered only once."""
    unit = max(1, mmap.PAGESIZE // _SLOT_ALIGNMENT_BYTES)
    return max(1, PIECE_BYTES // (slot_bytes * unit)) * unit
