"""The threads that make blocking calls for the event loop, and the way there and back.

A call from the loop to a thread costs two handovers of the interpreter lock, and each can take a switch
interval (5 ms) when the serving thread computes. So a job is not one call per piece: it is a queue of
pieces that a few lanes drain, and the loop wakes up once, when the last piece is through.

Lanes times the bytes of a piece bound the bytes in flight. Loads and stores have lanes of their own, so a
load never waits behind queued stores. A store lane also stands aside between two pieces while loads are under
way, for a bounded time, so that loads come first at the drive as well.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from typing import TypeVar, cast

from .threads import Threads, ended, through

T = TypeVar("T")

Piece = Callable[[], int | None]
"""Does one step of a job on a lane; returns the bytes that the drive has moved for it."""

STORE_LANES = 8  # 8 MiB of writes in flight; where more stopped helping: docs/performance.md
LOAD_LANES = 8  # 8 MiB of reads in flight; likewise
UPKEEP_LANES = 2  # one may be in a long reclaim while the other counts
SYNC_LANES = 8  # files that are synced at the same time: a flush is the drive's, so one pays for all of them
HEAD_LANES = 8  # likewise of new headers and their directory, which stores may wait for
STORE_YIELD_S = 0.005  # a store piece stands aside this long at most, so loads cannot starve stores


class Lanes:
    """Threads for loads, stores, the index, upkeep and syncs, and the way there and back.

    Threads: used from one event loop. Cancellation: a cancelled call returns only once no thread works for
    it any more; its pieces that had not started are dropped.
    """

    def __init__(self) -> None:
        """Start all threads.

        Raises:
            TierUnavailable: a limit of the system forbids it; no thread is left.
        """
        with ExitStack() as undo:
            self._load_pool = _started(undo, LOAD_LANES, "kvtier-load")
            self._store_pool = _started(undo, STORE_LANES, "kvtier-store")
            # One thread: there is one write transaction at a time in any case.
            self._index_pool = _started(undo, 1, "kvtier-index")
            self._upkeep_pool = _started(undo, UPKEEP_LANES, "kvtier-upkeep")
            self._sync_pool = _started(undo, SYNC_LANES, "kvtier-sync")
            self._head_pool = _started(undo, HEAD_LANES, "kvtier-head")
            self._stop = undo.pop_all()
        self._loads = 0
        self._quiet = threading.Event()
        self._quiet.set()
        self._moved = _Count()

    @property
    def moved_bytes(self) -> int:
        """Bytes that the drive has moved so far; any thread."""
        return self._moved.value

    async def load(self, pieces: Sequence[Piece]) -> None:
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

    async def store(self, pieces: Sequence[Piece], then: Callable[[], T]) -> T:
        """Run the pieces of one store, after loads, and when all are through `then`, on one of its lanes.

        Where it is cancelled before that, `then` does not run.
        """
        return await self._drain(self._store_pool, STORE_LANES, deque(pieces), then, before=self._stand_aside)

    async def index(self, call: Callable[[], T]) -> T:
        """Run one call on the index thread."""
        return await through(self._index_pool, call)

    async def upkeep(self, call: Callable[[], T]) -> T:
        """Run one call that may take long and that nobody's request waits for."""
        return await through(self._upkeep_pool, call)

    async def sync(self, calls: Sequence[Callable[[], None]]) -> list[BaseException | None]:
        """Run calls that wait for the drive's flush, side by side; returns the error of each, or None."""
        return await _beside(self._sync_pool, calls)

    async def sync_heads(self, calls: Sequence[Callable[[], None]]) -> list[BaseException | None]:
        """The same for what somebody may wait for soon."""
        return await _beside(self._head_pool, calls)

    def close(self) -> None:
        """Stop the threads; waits for what they are doing."""
        self._stop.close()

    async def _drain(
        self,
        pool: Threads,
        lanes_count: int,
        pieces: deque[Piece],
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
                self._moved.add(piece() or 0)

        def lead() -> T:
            try:
                lane()
            finally:
                wait(helpers)  # all submitted before this one, so none is still to begin
            for helper in helpers:
                helper.result()
            return cast("T", None) if cancelled.is_set() else then()

        def stop() -> None:
            cancelled.set()
            pieces.clear()

        # All submitted in one go: the jobs' lanes start, and so the jobs end, in the order of the jobs.
        helpers: list[Future[None]] = []
        try:
            for _ in range(min(lanes_count, len(pieces)) - 1):
                helpers.append(pool.submit(lane))
            return await through(pool, lead, stop)
        finally:
            # Where the lead was never submitted, nobody else waits for those that were.
            pieces.clear()
            await ended(*helpers)

    def _stand_aside(self) -> None:
        self._quiet.wait(STORE_YIELD_S)


async def _beside(pool: Threads, calls: Sequence[Callable[[], None]]) -> list[BaseException | None]:
    return await asyncio.gather(*(through(pool, call) for call in calls), return_exceptions=True)


class _Count:
    """A number that several threads raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int) -> None:
        with self._lock:
            self.value += amount


def _started(undo: ExitStack, count: int, name: str) -> Threads:
    threads = Threads(count, name)
    undo.callback(threads.shutdown)
    return threads


def _nothing() -> None:
    """What a load has to do when its pieces are through."""
