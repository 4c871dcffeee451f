"""Every blocking call of the disk tier, and the threads that make them.

`Files` is the narrow waist to the kernel: what a test wants to fail, tear, drop or kill goes through it.
Its methods block and are called on lane threads only. `Lanes` carries work from the event loop to those
threads, through aiofiles, and back.

A call from the loop to a thread costs two handovers of the interpreter lock, and each can take a switch
interval (5 ms) when the serving thread computes. So a job is not one call per piece: it is a queue of
pieces that a few lanes drain, with one wake-up of the loop when the last of them is through.

Bytes in flight are bounded by lanes times the bytes of a piece. Loads and stores have lanes of their own,
so a load never waits behind queued stores; and a store lane stands aside between two pieces while loads
are under way, a bounded while, so that loads come first at the drive as well.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import aiofiles.os

from ...base import Buffer
from ...settled import settled

T = TypeVar("T")

BLOCK_BYTES = 4096  # the unit of direct I/O: fits every drive's logical block and every page size below it
PIECE_BYTES = 1024 * 1024  # of one read or write: from here on larger ones gain nothing (docs/performance.md)
STORE_LANES = 8  # 8 MiB of writes in flight; where more stopped helping: docs/performance.md
LOAD_LANES = 8  # 8 MiB of reads in flight; likewise
UPKEEP_LANES = 2  # one may be in a long reclaim while the other syncs
STORE_YIELD_S = 0.005  # a store piece stands aside this long at most, so loads cannot starve stores
IOV_MAX = 1024  # the kernel's bound on the parts of one vectored call

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class Files:
    """Blocking calls on files, each doing one thing. Stateless; safe from any thread."""

    direct: bool = True  # whether data files are opened with O_DIRECT

    def reached(self, step: str) -> None:
        """A named step between two effects; a crash test stops the process here."""

    def boot_id(self) -> str:
        """The running kernel's boot, which unsynced writes do not outlive."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        """Open a data file for positional calls, past the page cache where `direct`."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if self.direct:
            flags |= os.O_DIRECT
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Take `size_bytes` of disk for the file, so that no later write can run out of space."""
        os.posix_fallocate(fd, 0, size_bytes)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def write_small(self, path: Path, data: bytes) -> None:
        """Replace a small file as a whole and make it durable."""
        draft = path.with_name(path.name + ".new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(path)
        self.sync_directory(path.parent)

    def overwrite_small(self, path: Path, data: bytes) -> None:
        """Write over the beginning of a file that is there, durably: it takes no room on a full drive."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Bytes of the file system that an unprivileged user may still take."""
        state = os.statvfs(path)
        return state.f_bavail * state.f_frsize

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        """Lock one byte of a file for this open file description, which a killed process gives up."""
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, fd: int, byte: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def scratch(size_bytes: int) -> Buffer:
    """Fresh zeroed memory for direct I/O, at least `size_bytes`, in whole blocks."""
    return memoryview(mmap.mmap(-1, max(BLOCK_BYTES, aligned(size_bytes))))


def write_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write whole blocks in full, at a block's offset, from memory of any alignment.

    Raises:
        OSError: the device or file system refused.
    """
    parts = deque(buffers)
    while parts:
        batch = [parts.popleft() for _ in range(min(IOV_MAX, len(parts)))]
        size_bytes = sum(map(len, batch))
        try:
            written = files.pwritev(fd, batch, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            batch = [_copy(batch)]  # memory that the drive cannot read from: through an aligned copy
            written = files.pwritev(fd, batch, offset)
        if written < size_bytes:
            if written <= 0:
                raise OSError(errno.EIO, "a write made no progress")
            written -= written % BLOCK_BYTES
            parts.extendleft(reversed(_rest(batch, written)))
        offset += written


def read_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Fill buffers from a block's offset, into memory of any alignment; returns bytes read before the end.

    Raises:
        OSError: the device or file system refused.
    """
    assert len(buffers) <= IOV_MAX, "the plan splits reads"
    wanted = sum(map(len, buffers))
    try:
        done = files.preadv(fd, buffers, offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _read_through_copy(files, fd, buffers, offset)
    while 0 < done < wanted and done % BLOCK_BYTES == 0:
        more = files.preadv(fd, _rest(buffers, done), offset + done)
        if more <= 0:
            break
        done += more
    return done


def _read_through_copy(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    copy = scratch(sum(map(len, buffers)))
    done = min(files.preadv(fd, [copy], offset), sum(map(len, buffers)))
    start = 0
    for buffer in buffers:
        part = copy[start : min(start + len(buffer), done)]
        buffer[: len(part)] = part
        start += len(buffer)
    return done


def _copy(buffers: Sequence[Buffer]) -> Buffer:
    copy = scratch(sum(map(len, buffers)))
    start = 0
    for buffer in buffers:
        copy[start : start + len(buffer)] = buffer
        start += len(buffer)
    return copy


def _rest(buffers: Sequence[Buffer], skip_bytes: int) -> list[Buffer]:
    rest = []
    for buffer in buffers:
        if skip_bytes < len(buffer):
            rest.append(buffer[skip_bytes:])
        skip_bytes = max(0, skip_bytes - len(buffer))
    return rest


def allocated_bytes(root: Path) -> int:
    """What `du` counts: allocated bytes of everything under `root`, and of `root` itself."""
    total = root.stat().st_blocks * 512
    for directory, _, names in os.walk(root):
        total += sum(_blocks_bytes(Path(directory, name)) for name in names)
        if Path(directory) != root:
            total += _blocks_bytes(Path(directory))
    return total


def _blocks_bytes(path: Path) -> int:
    try:
        state = path.lstat()
    except FileNotFoundError:  # removed while we looked
        return 0
    return state.st_blocks * 512 if stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode) else 0


class Lanes:
    """Threads for loads, for stores and for the index, and the way there and back.

    Threads: used from one event loop. Cancellation: a cancelled call returns only once no thread works for
    it any more; its pieces that had not started are dropped.
    """

    def __init__(self) -> None:
        self._load_pool = ThreadPoolExecutor(LOAD_LANES, "kvtier-load")
        self._store_pool = ThreadPoolExecutor(STORE_LANES, "kvtier-store")
        # One thread: there is one write transaction at a time in any case.
        self._index_pool = ThreadPoolExecutor(1, "kvtier-index")
        self._upkeep_pool = ThreadPoolExecutor(UPKEEP_LANES, "kvtier-upkeep")
        self._loads = 0
        self._quiet = threading.Event()
        self._quiet.set()

    async def load(self, pieces: Sequence[Callable[[], None]]) -> None:
        """Run the pieces of one load."""
        if not pieces:
            return
        self._loads += 1
        self._quiet.clear()
        try:
            await self._drain(self._load_pool, LOAD_LANES, deque(pieces), _nothing)
        finally:
            self._loads -= 1
            if not self._loads:
                self._quiet.set()

    async def store(self, pieces: Sequence[Callable[[], None]], then: Callable[[], T]) -> T:
        """Run the pieces of one store, after loads, and when all are through `then`, on one of its lanes.

        Where it is cancelled before that, `then` does not run.
        """
        return await self._drain(self._store_pool, STORE_LANES, deque(pieces), then, before=self._stand_aside)

    async def index(self, call: Callable[[], T]) -> T:
        """Run one call on the index thread."""
        return await settled(aiofiles.os.wrap(call)(executor=self._index_pool))

    async def upkeep(self, call: Callable[[], T]) -> T:
        """Run one call that may take long and that nobody's request waits for."""
        return await settled(aiofiles.os.wrap(call)(executor=self._upkeep_pool))

    def close(self) -> None:
        """Stop the threads; waits for what they are doing."""
        for pool in (self._load_pool, self._store_pool, self._index_pool, self._upkeep_pool):
            pool.shutdown(wait=True)

    async def _drain(
        self,
        pool: ThreadPoolExecutor,
        lanes_count: int,
        pieces: deque[Callable[[], None]],
        then: Callable[[], T],
        before: Callable[[], None] = lambda: None,
    ) -> T:
        cancelled = threading.Event()

        def lane() -> None:
            while True:
                try:
                    piece = pieces.popleft()  # atomic, so lanes share one queue without a lock
                except IndexError:
                    return
                before()
                piece()

        def lead(helpers: Sequence[Future[None]]) -> T | None:
            try:
                lane()
            finally:
                wait(helpers)  # all submitted before this one, so none is still to begin
            for helper in helpers:
                helper.result()
            return None if cancelled.is_set() else then()

        async def run() -> Any:
            # All submitted in one go: the jobs' lanes start, and so the jobs end, in the order of the jobs.
            helpers = [pool.submit(lane) for _ in range(min(lanes_count, len(pieces)) - 1)]
            return await aiofiles.os.wrap(lead)(helpers, executor=pool)

        def stop() -> None:
            cancelled.set()
            pieces.clear()

        return await settled(run(), on_cancel=stop)

    def _stand_aside(self) -> None:
        self._quiet.wait(STORE_YIELD_S)


def _nothing() -> None:
    """What a load has to do when its pieces are through."""
