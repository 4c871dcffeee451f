"""Flushes of a tier that is slow, fails or hangs: they end, and say where nobody knows what is durable."""

from __future__ import annotations

import asyncio

import pytest

from kvtier.engine.movement.flushing import TierFlush
from kvtier.tiers.errors import TierError
from kvtier.tiers.testing import MemoryTier

PATIENCE_S = 10.0
AT_ONCE_S = 0.01


class Gated(MemoryTier):
    """A tier whose flushes begin and end by hand, and fail with what the test says."""

    def __init__(self) -> None:
        super().__init__("gated")
        self.calls: list[asyncio.Future[None]] = []

    async def flush(self) -> None:
        call = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        await call

    async def has_begun(self, call: int) -> None:
        while len(self.calls) <= call:  # noqa: ASYNC110 - other tasks bring it about
            await asyncio.sleep(0)

    async def end(self, call: int, error: Exception | None = None) -> None:
        """End a flush, once it has begun."""
        await self.has_begun(call)
        if error is None:
            self.calls[call].set_result(None)
        else:
            self.calls[call].set_exception(error)


async def test_a_flush_that_hangs_is_left_behind_and_named() -> None:
    tier = Gated()
    flush = TierFlush(tier)
    error = await flush.error(AT_ONCE_S)
    assert str(error).startswith("gated: it has not confirmed within 0.01 s")
    await flush.end()


async def test_however_many_flush_a_tier_that_hangs_it_is_called_once() -> None:
    tier = Gated()
    flush = TierFlush(tier)
    errors = [await flush.error(AT_ONCE_S) for _ in range(3)]
    errors += await asyncio.gather(*(flush.error(AT_ONCE_S) for _ in range(3)))
    assert all(errors)
    assert len(tier.calls) == 1
    await flush.end()
    assert tier.calls[0].cancelled()


async def test_who_comes_during_a_flush_is_confirmed_by_one_that_began_after_it() -> None:
    tier = Gated()
    flush = TierFlush(tier)
    first = asyncio.ensure_future(flush.error(PATIENCE_S))
    await tier.has_begun(0)
    others = [asyncio.ensure_future(flush.error(PATIENCE_S)) for _ in range(2)]
    await tier.end(0)
    assert await first is None
    await tier.has_begun(1)
    assert not any(other.done() for other in others)
    await tier.end(1)
    assert await asyncio.gather(*others) == [None, None]
    assert len(tier.calls) == 2


async def test_what_failed_in_a_flush_under_way_is_told_to_those_who_came_meanwhile_and_to_no_later_one() -> (
    None
):
    tier = Gated()
    flush = TierFlush(tier)
    first = asyncio.ensure_future(flush.error(PATIENCE_S))
    await tier.has_begun(0)
    second = asyncio.ensure_future(flush.error(PATIENCE_S))
    await asyncio.sleep(0)  # in which it begins to wait
    await tier.end(0, TierError("gated", "a sync was refused"))
    await tier.end(1)
    assert "a sync was refused" in str(await first)
    assert "a sync was refused" in str(await second)
    third = asyncio.ensure_future(flush.error(PATIENCE_S))
    await tier.end(2)
    assert await third is None


@pytest.mark.parametrize("left", [1, 2])
async def test_what_failed_when_nobody_waited_any_more_is_told_by_the_next_flush(left: int) -> None:
    tier = Gated()
    flush = TierFlush(tier)
    for _ in range(left):
        assert await flush.error(AT_ONCE_S) is not None
    await tier.end(0, OSError("a sync was refused"))
    for call in range(1, left):
        await tier.end(call)
    later = asyncio.ensure_future(flush.error(PATIENCE_S))
    await tier.end(left)
    assert "a sync was refused" in str(await later)
    again = asyncio.ensure_future(flush.error(PATIENCE_S))
    await tier.end(left + 1)
    assert await again is None
