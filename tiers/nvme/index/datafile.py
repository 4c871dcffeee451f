"""LMDB's data file: as long as the map, and with its room taken ahead of LMDB.

LMDB writes pages with a system call, which shared memory that is full refuses with an error. The room is
taken ahead, in steps, so that a change is refused before it begins and not in the middle. Where no more is to
be had, changes go on in what was taken, and in pages that others gave up.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .records import LOCK_FILE_BYTES, MAP_PAGES_MIN, page_bytes, system_page_bytes

DATA = "data.mdb"  # LMDB's name for it
AHEAD_PAGES = 2048  # what one change may need: 512 chunks in 3 pages each, and some
CRAMPED_FILL_MAX = 1.6  # of what is there: pages in change need the rest; see `limit_bytes`

START_BYTES = MAP_PAGES_MIN * page_bytes(system_page_bytes()) + LOCK_FILE_BYTES  # of an index that is empty

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


def map_bytes_at(data: Path, wanted_bytes: int, *, alone: bool) -> int:
    """The size of the map: never smaller than what is there, and no other than what others have open."""
    there_bytes = data.stat().st_size if data.exists() else 0
    if there_bytes and not alone:
        return there_bytes
    return max(there_bytes, wanted_bytes, MAP_PAGES_MIN * page_bytes(system_page_bytes()))


class DataFile:
    """The file of one index in this process. Changes under the writer lock."""

    def __init__(self, path: Path, map_bytes: int, page: int) -> None:
        self._map_bytes = map_bytes
        self._ahead_bytes = AHEAD_PAGES * page
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # No writer makes it longer, so this never cuts what one appends.
            if os.fstat(self._fd).st_size < map_bytes:
                os.ftruncate(self._fd, map_bytes)
        except BaseException:
            os.close(self._fd)
            raise
        self._taken_bytes = 0  # up to where the file has its room
        self._cramped = False  # shared memory is full

    def limit_bytes(self, pages_bytes: int) -> int:
        """What an index of so many bytes may take: the map, or where shared memory is full, little more.

        A store fills half of it (`log/room.py`); of an index that cannot grow it may then fill four fifths.
        """
        return min(self._map_bytes, int(CRAMPED_FILL_MAX * pages_bytes)) if self._cramped else self._map_bytes

    def take_room(self, pages_bytes: int) -> None:
        """Take room for the next change behind the pages that are there."""
        if min(self._map_bytes, pages_bytes + self._ahead_bytes // 2) <= self._taken_bytes:
            return
        start = max(self._taken_bytes, pages_bytes)
        end = min(self._map_bytes, pages_bytes + self._ahead_bytes)
        try:
            if end > start:
                os.posix_fallocate(self._fd, start, end - start)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._cramped = True
        else:
            self._taken_bytes, self._cramped = end, False

    def close(self) -> None:
        os.close(self._fd)
