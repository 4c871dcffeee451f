"""The system calls that the NVMe tier makes on files, one method each.

`Files` is the narrow waist to the kernel: a test that wants a call to fail, tear, drop or kill replaces its
method. Every method blocks, so the event loop calls none of them: lanes do (`lanes.py`).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...base import Buffer
from ...errors import TierUnavailable
from . import forks
from .kernel import NOT_SUPPORTED, fallocate

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ZEROS_BYTES = 1024 * 1024  # of one write: larger ones gain nothing (docs/performance.md)

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class Files:
    """Blocking calls on files, each doing one thing. Stateless; safe from any thread."""

    direct: bool = True  # whether data files are opened with O_DIRECT

    def reached(self, step: str) -> None:
        """Mark a named step between two effects; a crash test stops the process here."""

    def boot_id(self) -> str:
        """The running kernel's boot, which unsynced writes do not outlive.

        Raises:
            TierUnavailable: it is hidden from this process.
        """
        try:
            return BOOT_ID.read_text().strip()
        except FileNotFoundError as error:
            raise TierUnavailable(
                "nvme",
                f"{BOOT_ID} is hidden from this process; show it all of /proc "
                f"(systemd: ProcSubset=all; a mount: no subset=pid)",
            ) from error

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        """Open a data file for positional calls, past the page cache where `direct`."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if self.direct:
            flags |= os.O_DIRECT
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        forks.closed(fd)
        os.close(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Take `size_bytes` of the drive for an empty file, so that no later write can run out of space.

        Where the file system cannot promise room it is written full of zeros, once in a segment's life.
        """
        try:
            fallocate(fd, size_bytes)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            self._write_zeros(fd, size_bytes)

    def _write_zeros(self, fd: int, size_bytes: int) -> None:
        with mmap.mmap(-1, ZEROS_BYTES) as memory, memoryview(memory) as zeros:
            done_bytes = 0
            while done_bytes < size_bytes:
                with zeros[: size_bytes - done_bytes] as part:
                    written = self.pwritev(fd, [part], done_bytes)
                if written <= 0:
                    raise OSError(errno.EIO, "a write made no progress")
                done_bytes += written

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def taken_bytes(self, fd: int) -> int:
        """What the file takes of its file system, as `du` counts."""
        return os.fstat(fd).st_blocks * 512

    def is_at(self, fd: int, path: Path) -> bool:
        """Whether the open file is still the one that is at this path."""
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return False
        ours = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def write_small(self, path: Path, data: bytes) -> None:
        """Replace a small file as a whole and make it durable."""
        draft = path.with_name(path.name + ".new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_whole(fd, data)
            os.fsync(fd)
            draft.rename(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()  # on a full drive it takes room that something else needs
            raise
        finally:
            os.close(fd)
        self.sync_directory(path.parent)

    def overwrite_small(self, path: Path, data: bytes) -> None:
        """Write over the beginning of a file that is there, durably: it takes no room on a full drive."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_whole(fd, data)
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
        return free_bytes(path)

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        """Lock one byte of a file for this open file description, which a killed process gives up."""
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        forks.locked(fd)
        return True

    def unlock(self, fd: int, byte: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def free_bytes(path: Path) -> int:
    """Bytes of the file system that an unprivileged user may still take."""
    state = os.statvfs(path)
    if not state.f_blocks:  # ramfs, a tmpfs of size=0, some FUSE: it tells no size, and has no bound
        return sys.maxsize
    return state.f_bavail * state.f_frsize


def write_whole(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of it, where one call takes only a part: at the end of a drive's room, or of a file's limit.

    Raises:
        OSError: the file system refused; a part may be written.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def allocated_bytes(root: Path) -> int:
    """Count as `du` does: allocated bytes of everything under `root`, and of `root` itself."""
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
