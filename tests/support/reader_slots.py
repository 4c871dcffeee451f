"""Indexes with few reader slots, and threads that hold them all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from kvtier.tiers.nvme.index import environment, slots
from kvtier.tiers.nvme.index.environment import Index
from kvtier.tiers.nvme.index.errors import IndexStarved

HEAD_BYTES = 128  # what stands before the slots in LMDB's lock file


def few_slots(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Have new indexes made with so many slots: the lock file decides, for other processes too."""
    monkeypatch.setattr(environment, "READERS_MAX", count)
    monkeypatch.setattr(slots, "LOCK_FILE_BYTES", HEAD_BYTES + count * 64)


@contextlib.contextmanager
def all_held(index: Index) -> Iterator[int]:
    """Threads that read until the end, as many as there are slots for; how many."""
    leave, held, refused = threading.Event(), threading.Semaphore(0), threading.Event()
    threads = []

    def hold() -> None:
        try:
            with index.read():
                held.release()
                leave.wait()
        except IndexStarved:
            refused.set()
            held.release()

    try:
        while not refused.is_set():
            threads.append(threading.Thread(target=hold))
            threads[-1].start()
            held.acquire()
        yield len(threads) - 1
    finally:
        leave.set()
        for thread in threads:
            thread.join()
