"""Runs a store's chores in the background, on the tier's lanes."""

from __future__ import annotations

import asyncio
import contextlib

from ..errors import TierError
from ..settled import ended
from .failures import FailureLog
from .io.lanes import Lanes
from .store.chores import Chores
from .store.opening import Store

PERIOD_S = 1.0  # between two rounds that found nothing to do


class Keeper:
    """The task that does the chores. One event loop."""

    def __init__(self, lanes: Lanes, store: Store, failures: FailureLog) -> None:
        self._lanes, self._failures, self._chores = lanes, failures, Chores(store)
        self._stopping = asyncio.Event()
        self._catch_up = store.catch_up
        self._caught_up = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def caught_up(self) -> None:
        """Return when the index has all that the log has."""
        await self._caught_up.wait()

    async def stop(self) -> None:
        """End the task; what is half done is gone on with by whoever comes next."""
        self._stopping.set()
        await ended(self._task)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            if not await self._round():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._stopping.wait()

    async def _round(self) -> bool:
        try:
            more = await self._lanes.upkeep(self._chores.round)
            if not more and not self._caught_up.is_set() and not await self._is_behind():
                self._caught_up.set()
            return more
        except (OSError, TierError) as error:
            self._failures.add(f"chores: {error}")
        except Exception as error:  # a fault of ours: the next round tries again
            self._failures.add_bug("chores", error)
        return False

    async def _is_behind(self) -> bool:
        return await self._lanes.upkeep(self._catch_up.is_due)
