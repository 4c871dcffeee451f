"""Writes an engine's notice board once a second, beside the engine's work.

The numbers are read and written on a thread of the loop's pool, which nobody waits for: a drive or a shared
memory that hangs makes the board stale, and delays nothing. `KVTIER_LIVE=0` in the environment turns it off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ..chain import ChainStats
from .board import Board, Facts, encode
from .history import History
from .home import BOARD, HISTORY, SHARED_MEMORY, Place

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0  # as often as people look; a board is some kilobytes, and written within 0.1 ms
HISTORY_EVERY_S = 60.0  # its file may have 1,500 lines
LEAVE_WAIT_S = 0.5  # for a write that is under way, which takes microseconds unless the machine hangs
NAMESPACE_DIGITS = 12
SWITCH = "KVTIER_LIVE"


class TierCap(Protocol):
    """What a tier can take, and what keeps it from taking more."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def bound_by(self) -> str: ...


@runtime_checkable
class TellsOfStores(Protocol):
    """A chain's spec that can say where its tiers keep chunks, once it has started."""

    @property
    def label(self) -> str: ...

    @property
    def namespace(self) -> bytes: ...

    @property
    def places(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def caps(self) -> Mapping[str, TierCap]: ...


def facts_of(spec: object, kind: str, chunk_bytes: int, chunk_tokens: float | None) -> Facts:
    """What a board tells of an engine of this spec, which may know nothing of stores."""
    known = spec if isinstance(spec, TellsOfStores) else None
    return Facts(
        kind=kind,
        model=known.label if known else "",
        namespace=known.namespace.hex()[:NAMESPACE_DIGITS] if known else "",
        chunk_bytes=chunk_bytes,
        chunk_tokens=chunk_tokens,
        places={name: [os.path.realpath(path) for path in paths] for name, paths in known.places.items()}
        if known
        else {},
        caps={
            name: {"cap_bytes": cap.size_bytes, "bound_by": cap.bound_by} for name, cap in known.caps.items()
        }
        if known
        else {},
    )


class Publisher:
    """The board of one engine; `run` is for the engine's loop, whose end removes the board."""

    def __init__(
        self,
        facts: Facts,
        stats: Callable[[], ChainStats],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._facts, self._stats, self._clock = facts, stats, clock
        self._started_unix_s = clock()
        self._lock = threading.Lock()
        # Under the lock:
        self._place: Place | None = None
        self._has_left = False
        # Of whoever looks, one at a time:
        self._history = History()
        self._history_unix_s = 0.0

    async def run(self) -> None:
        """Write the board again and again, until cancelled."""
        if os.environ.get(SWITCH) == "0":
            return
        try:
            while True:
                if not await asyncio.to_thread(self.look):
                    return
                await asyncio.sleep(INTERVAL_S)
        finally:
            self.leave()

    def look(self) -> bool:
        """Write the numbers of now; False where that cannot be done on this machine."""
        try:
            stats, now_unix_s = self._stats(), self._clock()
            board = Board(os.getpid(), self._started_unix_s, now_unix_s, self._facts, stats.as_dict())
            self._history.add(now_unix_s, stats)
            return self._write(encode(board), now_unix_s)
        except Exception as error:
            logger.warning("no notice board for `kvtier top` from now on: %s", error)
            return False

    def leave(self) -> None:
        """Remove the board. A write that hangs keeps it, and the next engine to start removes it."""
        if not self._lock.acquire(timeout=LEAVE_WAIT_S):
            return
        try:
            self._has_left = True
            if self._place is not None:
                self._place.leave()
                self._place = None
        finally:
            self._lock.release()

    def _write(self, board: bytes, now_unix_s: float) -> bool:
        with self._lock:
            if self._has_left:
                return False
            if self._place is None:
                self._place = Place(SHARED_MEMORY)
            self._place.write(BOARD, board)
            if not 0 <= now_unix_s - self._history_unix_s < HISTORY_EVERY_S:
                self._place.write(HISTORY, self._history.encoded())
                self._history_unix_s = now_unix_s
        return True
