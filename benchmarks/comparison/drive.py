"""The drive that is measured: flushed, waited for until it rests, and its page cache dropped."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512  # of the kernel's counters, whatever the drive's own
QUIET_S = 0.5  # a drive rests that has done nearly nothing for that long
QUIET_BYTES = 1 << 20  # of others' writes in that time: nothing beside the hundreds of a case
LOOKS_MAX = 10  # 5 s: on a machine that others write to it may never rest, and the run goes on

# Of an inode, as `chattr +T` sets them.
_FLAGS = struct.Struct("l")
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOP_OF_TREES = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)


class Writes(NamedTuple):
    """What a drive has written so far, discards included, and how many calls it still works on."""

    done_bytes: int
    in_flight: int

    @classmethod
    def read(cls, text: str) -> Writes:
        """From the `stat` file of a block device: Documentation/block/stat.rst in the kernel's source."""
        fields = [int(field) for field in text.split()]
        discarded = fields[13] if len(fields) > 13 else 0
        return cls((fields[6] + discarded) * SECTOR_BYTES, fields[8])


def come_to_rest(path: Path) -> bool:
    """Flush the file system of `path` and wait, a bounded while, until its drive is quiet.

    Returns:
        Whether it is: False where others go on writing, and where no single drive is known (btrfs, tmpfs).
    """
    sync_file_system(path)
    device = path.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not counters.exists():
        return False
    return is_quiet(lambda: Writes.read(counters.read_text()), time.sleep)


def is_quiet(look: Callable[[], Writes], wait: Callable[[float], None]) -> bool:
    """Look at the drive until it has done nearly nothing between two looks, LOOKS_MAX times at most."""
    before = look()
    for _ in range(LOOKS_MAX):
        wait(QUIET_S)
        now = look()
        if not now.in_flight and now.done_bytes - before.done_bytes <= QUIET_BYTES:
            return True
        before = now
    return False


def sync_file_system(path: Path) -> None:
    """Make everything on the file system of `path` durable, with one flush of the drive at the end."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(fd)


def drop_page_cache_of(path: Path) -> None:
    """Write back and forget the cached pages of every file under `path`, so that the next read is cold."""
    for directory, _, names in os.walk(path):
        for name in names:
            fd = os.open(Path(directory, name), os.O_RDONLY)
            try:
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def keep_apart(root: Path) -> None:
    """Have ext4 put each directory that is made in `root` into a region of its own; elsewhere, do nothing.

    ext4 without a journal does not use the inode of a deleted file again for minutes, and looks at each such
    inode of a region whenever it makes a file there. Those who make a file a chunk would pay for what the
    run before has deleted: their stores were up to ten times slower. A server's drive is not in that state.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _TOP_OF_TREES))
    except OSError:
        return  # another file system
    finally:
        os.close(fd)
