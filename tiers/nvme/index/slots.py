"""LMDB's lock file: taken in full before it is mapped, and freed of readers that had our pid before us.

Every reader writes its slot through a shared mapping. A page that has no room behind it would then end the
process by SIGBUS, so the file has all of its room before LMDB maps it.

LMDB takes a slot for dead when nobody has locked its pid, and never looks at slots of its own pid. A process
whose pid was used before it, by one that was killed while it read, would keep that one's slot for ever, and
with it every page that the dead one saw. So whoever opens an index clears those slots first. Within one PID
namespace nobody else has that pid.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from .records import LOCK_FILE_BYTES, READER_BYTES

LOCKS = "lock.mdb"  # LMDB's name for it
_PID = struct.Struct("=8xi")
_PID_OFFSET = 8


def make_lock_file(path: Path) -> None:
    """Make LMDB's lock file with all of its room.

    Raises:
        OSError: there is no room for it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
    finally:
        os.close(fd)


def slots_start(slots_count: int) -> int:
    """Where the slots begin in a lock file that LMDB says has so many of them: the last one ends the file."""
    return LOCK_FILE_BYTES - slots_count * READER_BYTES


def clear_own_slots(fd: int, table_start: int) -> int:
    """Free slots of our own pid, while this process has none; returns how many there were.

    `table_start` is where the slots begin. The file is not to be closed before LMDB has closed it: a process
    that closes a file once gives up all locks that it has on it, and LMDB has some.
    """
    table = os.pread(fd, os.fstat(fd).st_size, 0)
    starts = range(table_start, len(table) - READER_BYTES + 1, READER_BYTES)
    ours = [start for start in starts if _PID.unpack_from(table, start)[0] == os.getpid()]
    for start in ours:
        os.pwrite(fd, bytes(4), start + _PID_OFFSET)
    return len(ours)
