"""Flushes: the calls of a tier that make it durable, and a flush under way as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from ...tiers.base import Tier
from ...tiers.errors import NotDurable, TierError
from ..job import Job


class _Call:
    """One call of a tier's flush.

    Attributes:
        task: returns what failed.
        is_known: whether somebody has waited to its end.
    """

    def __init__(self, task: asyncio.Task[TierError | None]) -> None:
        self.task = task
        self.is_known = False


class TierFlush:
    """Flushes one tier, with one call at a time. On the loop thread only.

    Who comes during a call waits for the next one, which covers all that he has stored, and which he shares
    with everybody else who waits. He hears of both: what failed in the first may be his, too. A tier says so
    only once, so what fails in a call that nobody waits for any more is told by the next. A call that never
    returns holds one task, however many have waited for it.
    """

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        # Mutable state:
        self._last: _Call | None = None  # under way, or ended
        self._next: _Call | None = None  # begins when that has ended

    async def error(self, limit_s: float) -> TierError | None:
        """Flush; returns what failed, or that the tier has not confirmed within the limit."""
        before = self._last if self._last is not None and not self._last.task.done() else None
        if self._next is None:
            self._next = _Call(asyncio.ensure_future(self._call(self._last)))
        own = self._next
        await asyncio.wait([own.task], timeout=limit_s)  # which leaves the call alone when this is cancelled
        if not own.task.done():
            return TierError(
                self.tier.name, f"it has not confirmed within {limit_s:g} s that what it has is durable"
            )
        own.is_known = True
        error = own.task.result()
        if before is not None:
            before.is_known = True
            error = error or before.task.result()
        return None if error is None else _anew(error)

    async def end(self) -> None:
        """Cancel what is under way; returns once it has ended."""
        calls = [call.task for call in (self._last, self._next) if call is not None]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _call(self, before: _Call | None) -> TierError | None:
        if before is not None:
            await asyncio.wait([before.task])
        self._last, self._next = self._next, None  # what is stored from now on is not covered
        error = await error_of(self.tier, self.tier.flush())
        return error or (None if before is None or before.is_known else before.task.result())


def _anew(error: TierError) -> TierError:
    """The same for one who waited: it is raised on his thread, while others raise theirs."""
    anew = TierError(error.tier, str(error).removeprefix(f"{error.tier}: "))
    anew.__cause__ = error
    return anew


async def error_of(tier: Tier, call: Awaitable[None]) -> TierError | None:
    """Await a call of a tier; returns what it raised."""
    try:
        await call
    except TierError as error:
        return error
    except Exception as error:  # a tier of another package may raise anything
        failed = TierError(tier.name, f"it raised {error!r}")
        failed.__cause__ = error
        return failed
    return None


class FlushJob(Job[None]):
    """A flush. Whoever waits for it in vain, be it for a time-out, hears of its losses from the next one."""

    def wait(self, timeout: float | None = None) -> None:
        with _reaching():
            super().wait(timeout)

    def __await__(self) -> Generator[Any, None, None]:
        with _reaching():
            yield from super().__await__()


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except NotDurable as error:
        error.told()
        raise
