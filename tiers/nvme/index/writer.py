"""The writer lock of an index: one writer at a time, and nobody waits for it longer than a bound.

LMDB has a lock of its own, by thread id, which repeats over containers, and whoever waits for it waits until
its holder goes on. So ours comes first: a lock on an open file description, which a killed process gives up
whatever its ids, and which is asked for rather than waited for. LMDB's lock is then always free.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..io.files import Files
from .errors import IndexBusy

INDEX_LOCK_WAIT_S = 3.0  # transactions take milliseconds; who holds it for seconds is paused or in trouble
POLL_MIN_S, POLL_MAX_S = 0.00005, 0.002  # between two questions: quick at first, then cheap

WRITER = "writer"  # the file's name
_WRITER_BYTE = 0
USERS_BYTE = 1  # shared by all who have the index open, held alone by who removes it


class WriterLock:
    """The lock of one index in this process. Any thread; not reentrant."""

    def __init__(self, path: Path) -> None:
        """Open the lock of the index in the directory `path`; the index counts as used until `close`.

        Raises:
            FileNotFoundError: it is not there; a new one would exclude nobody who has the old one.
            IndexBusy: the index is being removed.
        """
        self._files = Files()
        self._fd = os.open(path / WRITER, os.O_RDWR | os.O_CLOEXEC)
        self._threads = threading.Lock()
        if not self._files.try_lock(self._fd, USERS_BYTE, exclusive=False):
            self.close()
            raise IndexBusy("nvme", "the index is being removed by another process")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            IndexBusy: somebody else has held it all the time.
        """
        deadline_s = time.monotonic() + INDEX_LOCK_WAIT_S
        if not self._threads.acquire(timeout=INDEX_LOCK_WAIT_S):
            raise IndexBusy("nvme", "a thread of this process is stuck in a change of the index")
        try:
            self._ask(deadline_s)
            try:
                yield
            finally:
                self._files.unlock(self._fd, _WRITER_BYTE)
        finally:
            self._threads.release()

    def _ask(self, deadline_s: float) -> None:
        pause_s = POLL_MIN_S
        while not self._files.try_lock(self._fd, _WRITER_BYTE, exclusive=True):
            if time.monotonic() > deadline_s:
                raise IndexBusy(
                    "nvme", "another process holds the index: it is paused, or its machine is busy"
                )
            time.sleep(pause_s)
            pause_s = min(POLL_MAX_S, 2 * pause_s)

    def close(self) -> None:
        self._files.close(self._fd)
