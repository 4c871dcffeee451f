"""The file of a recorder: private, bounded, of one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 * 1024 * 1024  # then it becomes the older one of two: some million prompts of a page

LINE_BYTES_MAX = 1 << 24  # looked at for the begin of a line that was cut off; a replay reads no longer ones

OURS = (b'{"timestamp":', b'{"kvtier_tr')  # what a line of a trace begins with, as `recorder.py` writes it

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class RecordFile:
    """Lines behind those that are there. Blocking; one thread.

    Raises:
        OSError: the file cannot be opened or written; it is left as it is.
    """

    def __init__(self, path: Path, head: Callable[[], str], file_bytes_max: int = FILE_BYTES_MAX) -> None:
        """Open the file, or, where another process records into it, one beside it.

        Args:
            head: makes the first line of each file.
        """
        self._head, self._file_bytes_max = head, file_bytes_max
        try:
            self._path, self._fd = path, _opened(path)
        except BlockingIOError:
            self._path = path.with_name(f"{path.name}.{os.getpid()}")
            logger.warning("kvtier: another server records to %s; this one records to %s", path, self._path)
            self._fd = _opened(self._path)
        self._append(head())

    def append(self, line: str) -> None:
        """Write one line; at the bound the file is renamed to `.1`, in place of the one before.

        A file that somebody has renamed or removed is left to him, and a new one begun.
        """
        if not self._is_there():
            self._begin_again()
        elif os.fstat(self._fd).st_size + len(line) >= self._file_bytes_max:
            os.rename(self._path, self._path.with_name(f"{self._path.name}.1"))
            self._begin_again()
        self._append(line)

    def close(self) -> None:
        os.close(self._fd)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _begin_again(self) -> None:
        fd = _opened(self._path)
        os.close(self._fd)
        self._fd = fd
        self._append(self._head())

    def _append(self, line: str) -> None:
        """Write a whole line, or nothing."""
        before_bytes = os.fstat(self._fd).st_size
        data = memoryview(f"{line}\n".encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            os.ftruncate(self._fd, before_bytes)
            raise


def _opened(path: Path) -> int:
    """Open and lock a regular file that is ours alone.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened, or is no such file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "not a regular file of this user", str(path))
        os.fchmod(fd, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(errno.EAGAIN, "locked", str(path)) from error
            raise
        _end_line(fd)
        undo.pop_all()
    return fd


def _end_line(fd: int) -> None:
    """Cut off a line of ours that was not written to its end, and end anybody else's."""
    size_bytes = os.fstat(fd).st_size
    tail = os.pread(fd, LINE_BYTES_MAX, max(0, size_bytes - LINE_BYTES_MAX))
    if not tail or tail.endswith(b"\n"):
        return
    cut = tail[tail.rfind(b"\n") + 1 :]
    if cut.startswith(OURS):
        os.ftruncate(fd, size_bytes - len(cut))
    else:
        os.write(fd, b"\n")
