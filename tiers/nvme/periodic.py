"""A task that takes a step again and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ..settled import ended


class Periodic:
    """Takes the step soon after `wake`, and otherwise once a period. One event loop.

    The step handles its own errors: one that it raises ends the task.
    """

    def __init__(self, step: Callable[[], Awaitable[None]], period_s: Callable[[], float]) -> None:
        self._step, self._period_s = step, period_s
        # Mutable state, changed on the loop only.
        self._woken = asyncio.Event()
        self._one = asyncio.Lock()
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Take the step soon: once more, where it is under way."""
        self._woken.set()

    async def once(self) -> None:
        """Take the step now, after the one under way."""
        async with self._one:
            await self._step()

    async def stop(self) -> None:
        """End the task, after the step under way."""
        self._stopping = True
        self._woken.set()
        await ended(self._task)

    async def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()  # before the work, so that what changes during it is not missed
            await self.once()
            if not self._stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._period_s()):
                        await self._woken.wait()
