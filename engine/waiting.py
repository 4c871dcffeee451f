"""Waiting for what movement brings about: who waits is woken when it is so, and not at every move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class _Waiter:
    __slots__ = ("is_so", "woken")

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self.is_so = is_so
        self.woken = asyncio.Event()


class Waiting:
    """Tasks that wait, each for a condition of its own. On the loop thread only.

    They are woken in the order in which they came. What one of them waits for is its own if it takes that
    before it awaits anything else.
    """

    def __init__(self) -> None:
        # Mutable state; a dict for its order:
        self._waiters: dict[_Waiter, None] = {}

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()`, which is asked at every `signal`."""
        if is_so():
            return
        waiter = _Waiter(is_so)
        self._waiters[waiter] = None
        try:
            while True:
                await waiter.woken.wait()
                waiter.woken.clear()
                if is_so():  # who was woken before may have taken it
                    return
        finally:
            del self._waiters[waiter]

    def signal(self) -> None:
        """Something has moved, or somebody has returned a pin."""
        for waiter in self._waiters:
            if not waiter.woken.is_set() and waiter.is_so():
                waiter.woken.set()
