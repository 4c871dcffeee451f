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
        """Write one line; at the bound the file is renamed to `.1`, in place of the one before."""
        if os.fstat(self._fd).st_size + len(line) >= self._file_bytes_max:
            os.rename(self._path, self._path.with_name(f"{self._path.name}.1"))
            os.close(self._fd)
            self._fd = _opened(self._path)
            self._append(self._head())
        self._append(line)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, line: str) -> None:
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[os.write(self._fd, data) :]


def _opened(path: Path) -> int:
    """Open and lock a regular file that is ours alone.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened, or is no such file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
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
        undo.pop_all()
    return fd
