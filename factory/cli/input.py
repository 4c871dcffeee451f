"""What commands read: a file, a pipe, or standard input."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from pathlib import Path
from typing import Any

from ...tiers import ConfigError

STANDARD_INPUT = "standard input"
_MEANS_STANDARD_INPUT = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}


def name_of(file: Path) -> str:
    """What messages call it."""
    return STANDARD_INPUT if str(file) in _MEANS_STANDARD_INPUT else str(file)


def read_json(file: Path) -> Any:
    """Read a file of JSON, of which `-` is standard input, and a pipe is waited for.

    Raises:
        ConfigError: it cannot be read, or is not JSON; says where.
    """
    from ..config import DOCUMENT_BYTES_MAX, parse_document, read_document

    if str(file) == "-":
        if sys.stdin is None:  # closed by who started us
            raise ConfigError("", f"{STANDARD_INPUT} is closed")
        return parse_document(sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1), STANDARD_INPUT)
    if not _is_stream(file):
        return read_document(file)
    with open(file, "rb") as stream:
        return parse_document(stream.read(DOCUMENT_BYTES_MAX + 1), name_of(file))


def is_document(path: Path) -> bool:
    """Whether a path that may also be a directory's names a document; one that is missing, by its name."""
    if str(path) == "-" or path.is_file() or path.is_fifo():
        return True
    return path.suffix == ".json" and not path.exists()


def _is_stream(file: Path) -> bool:
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):
        return False  # to be told by who opens it
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


class Stoppable(io.RawIOBase):
    """Reads a descriptor until it ends, or until somebody stops it: a pipe may be silent for ever.

    Threads: one reads; `stop` on any, once it is to end. The descriptor stays open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        if any(fd == self._stopped for fd, _ in poll.poll()):
            return 0
        return os.readv(self._fd, [buffer])

    def stop(self) -> None:
        """End what is being read, as if the stream ended there."""
        os.eventfd_write(self._stopped, 1)

    def close(self) -> None:
        if not self.closed:
            os.close(self._stopped)
        super().close()
