import asyncio
import struct
from dataclasses import replace
from typing import Any

import pytest
from chain_rig import CountingTier

from kvtier.tiers.base import (
    DEVICE_FAILURES,
    CountsUses,
    Failure,
    Invalidates,
    Outcome,
    RemoveReason,
    ReportsRemovals,
    Wrapper,
    ability,
)
from kvtier.tiers.breaker import (
    BAD_CALLS_MAX,
    LEFT_BEHIND_MAX,
    LOG_EVERY_S,
    PAUSE_MAX_S,
    PAUSE_S,
    PROGRESS_BYTES,
    Breaker,
    BreakerState,
)
from kvtier.tiers.testing import Bare, MemoryTier, TierContract

SLOW_S = 1.0
BUFFER = [memoryview(bytearray(8))]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FaultyTier(MemoryTier):
    """A memory tier whose device refuses while `refuses` is set."""

    refuses = False
    why = Failure.IO_ERROR
    is_sample = True
    bad_places: frozenset[bytes] = frozenset()

    async def load(self, keys, buffers):
        bad = keys if self.refuses else self.bad_places.intersection(keys)
        good = [(key, buffer) for key, buffer in zip(keys, buffers, strict=True) if key not in bad]
        outcome = await super().load([key for key, _ in good], [buffer for _, buffer in good])
        outcome = Outcome.of(keys, {**outcome.failed, **dict.fromkeys(bad, self.why)})
        return replace(outcome, is_sample=self.is_sample)


class Rig:
    def __init__(self) -> None:
        self.clock = Clock()
        self.tier = FaultyTier()
        self.tier.chunks[b"a"] = bytes(8)
        self.breaker = Breaker(self.tier, slow_s=SLOW_S, clock=self.clock)

    def state(self) -> BreakerState:
        return self.breaker.state

    async def load(self) -> Failure | None:
        return (await self.breaker.load([b"a"], BUFFER)).failed.get(b"a")

    async def trip(self) -> None:
        self.tier.refuses = True
        for _ in range(BAD_CALLS_MAX):
            assert await self.load() is Failure.IO_ERROR
        assert self.state() is BreakerState.OPEN


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_bad_place_on_the_drive_is_not_the_drive(rig: Rig) -> None:
    rig.tier.chunks[b"b"] = bytes(8)
    rig.tier.bad_places = frozenset([b"b"])
    for _ in range(2 * BAD_CALLS_MAX):
        outcome = await rig.breaker.load([b"a", b"b"], 2 * BUFFER)
        assert outcome.failed == {b"b": Failure.IO_ERROR}
    assert rig.state() is BreakerState.CLOSED


class TestBreaker(TierContract):
    @pytest.fixture
    async def tier(self) -> Breaker:
        return Breaker(MemoryTier(), slow_s=SLOW_S)


async def test_errors_in_a_row_open_it_and_then_nothing_reaches_the_tier(rig: Rig) -> None:
    await rig.trip()
    rig.tier.refuses = False
    reached = len(rig.tier.log)
    assert list(rig.breaker.lookup([b"a"])) == [False]
    assert await rig.load() is Failure.MISSING
    stored = await rig.breaker.store([b"b"], BUFFER)
    assert stored.failed == {b"b": Failure.DROPPED}
    assert len(rig.tier.log) == reached
    stats = rig.breaker.stats()
    assert stats.gauges["breaker_state"] == BreakerState.OPEN
    assert stats.counters["breaker_openings"] == 1
    assert stats.counters["breaker_missed_chunks"] == 1
    assert stats.counters["breaker_dropped_chunks"] == 1


async def test_errors_with_a_success_between_them_leave_it_closed(rig: Rig) -> None:
    for _ in range(3 * BAD_CALLS_MAX):
        rig.tier.refuses = True
        for _ in range(BAD_CALLS_MAX - 1):
            await rig.load()
        rig.tier.refuses = False
        assert await rig.load() is None
    assert rig.state() is BreakerState.CLOSED


async def test_a_miss_or_a_corrupt_chunk_is_no_fault_of_the_drive(rig: Rig) -> None:
    for i in range(2 * BAD_CALLS_MAX):
        await rig.breaker.load([b"absent"], BUFFER)
        rig.tier.chunks[key := b"%d" % i] = bytes(8)
        rig.tier.broken.add(key)
        await rig.breaker.load([key], BUFFER)
    assert rig.state() is BreakerState.CLOSED


async def test_a_call_that_hangs_opens_it_and_is_not_held_against_a_tier_that_answers_others(
    rig: Rig,
) -> None:
    rig.tier.gate.clear()
    hung = asyncio.ensure_future(rig.load())
    await asyncio.sleep(0)
    assert list(rig.breaker.lookup([b"a"])) == [True]
    rig.clock.now_s += SLOW_S + 0.1
    assert list(rig.breaker.lookup([b"a"])) == [False]
    rig.clock.now_s += PAUSE_S
    assert rig.state() is BreakerState.TRYING
    stuck, rig.tier.gate = rig.tier.gate, asyncio.Event()
    rig.tier.gate.set()  # for what comes from here on
    stored = await rig.breaker.store([b"b"], BUFFER)
    assert stored.succeeded == (b"b",)
    assert rig.state() is BreakerState.CLOSED
    rig.clock.now_s += 100 * SLOW_S
    assert list(rig.breaker.lookup([b"a"])) == [True], "the old call is left behind"
    stuck.set()
    assert await hung is None
    assert rig.state() is BreakerState.CLOSED


async def test_no_trial_adds_a_call_without_bound_to_those_that_hang(rig: Rig) -> None:
    rig.tier.gate.clear()
    hung = []
    for _ in range(5 * LEFT_BEHIND_MAX):
        hung.append(asyncio.ensure_future(rig.load()))
        await asyncio.sleep(0)
        rig.clock.now_s += SLOW_S + PAUSE_MAX_S + 0.1
        rig.breaker.lookup([b"a"])
        rig.clock.now_s += PAUSE_MAX_S
    assert sum(not one.done() for one in hung) == LEFT_BEHIND_MAX
    assert rig.state() is BreakerState.OPEN
    rig.tier.gate.set()
    await asyncio.gather(*hung)
    assert rig.state() is BreakerState.TRYING


class MovingTier(FaultyTier):
    """A tier that says what its device moves."""

    moved_bytes = 0


async def test_a_call_in_a_queue_that_moves_does_not_hang_and_one_that_stands_does() -> None:
    rig = Rig()
    rig.tier = tier = MovingTier()
    tier.chunks[b"a"] = bytes(8)
    rig.breaker = Breaker(tier, slow_s=SLOW_S, clock=rig.clock)
    tier.gate.clear()
    call = asyncio.ensure_future(rig.load())
    await asyncio.sleep(0)
    for _ in range(20):
        rig.clock.now_s += SLOW_S * 0.9
        tier.moved_bytes += PROGRESS_BYTES
        assert list(rig.breaker.lookup([b"a"])) == [True]
    rig.clock.now_s += SLOW_S * 5
    tier.moved_bytes += PROGRESS_BYTES  # nobody looked meanwhile, but it has moved
    assert list(rig.breaker.lookup([b"a"])) == [True]
    rig.clock.now_s += SLOW_S + 0.1
    tier.moved_bytes += PROGRESS_BYTES - 1
    assert list(rig.breaker.lookup([b"a"])) == [False]
    tier.gate.set()
    await call


class RaisingTier(MemoryTier):
    """A tier that raises where it must not."""

    error: Exception | None = None

    def lookup(self, keys):
        if self.error is not None:
            raise self.error
        return super().lookup(keys)

    def stats(self):
        if self.error is not None:
            raise self.error
        return super().stats()

    async def load(self, keys, buffers):
        if self.error is not None:
            raise self.error
        return await super().load(keys, buffers)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(5, "EIO"), KeyError("x"), struct.error("y")])
async def test_whatever_a_tier_raises_is_a_bad_sample_and_stays_in_the_breaker(error: Exception) -> None:
    tier = RaisingTier()
    tier.chunks[b"a"] = bytes(8)
    breaker = Breaker(tier, slow_s=SLOW_S)
    chunks = breaker.stats().chunks
    tier.error = error
    assert breaker.stats().chunks == chunks
    for _ in range(BAD_CALLS_MAX - 1):
        assert list(breaker.lookup([b"a"])) == [False]
    assert breaker.stats().counters["breaker_openings"] == 0
    assert (await breaker.load([b"a"], BUFFER)).failed == {b"a": Failure.IO_ERROR}
    assert breaker.state is BreakerState.OPEN


class RefusingTier(MemoryTier):
    """A tier that raises when it is told to forget, or to make durable."""

    async def remove(self, keys, reason):
        raise ConnectionError("refused")

    async def flush(self):
        raise ConnectionError("refused")


@pytest.mark.parametrize("method", ["remove", "flush"])
async def test_a_removal_or_flush_that_raises_is_a_bad_sample_and_its_caller_learns_of_it(
    method: str,
) -> None:
    breaker = Breaker(RefusingTier(), slow_s=SLOW_S)
    for turn in range(BAD_CALLS_MAX + 1):
        assert (breaker.state is BreakerState.OPEN) is (turn == BAD_CALLS_MAX)
        with pytest.raises(ConnectionError):
            await (breaker.flush() if method == "flush" else breaker.remove([b"a"], RemoveReason.REQUESTED))


class NonsenseTier(MemoryTier):
    """A tier whose answers are what a test says."""

    answer: Any = None

    def lookup(self, keys):
        return self.answer

    async def store(self, keys, buffers):
        return self.answer

    async def load(self, keys, buffers):
        return self.answer


@pytest.mark.parametrize("answer", [None, [], [True, True], ["yes"], [[]], True, 7])
async def test_a_lookup_that_answers_nonsense_is_a_miss_and_a_bad_sample(answer: Any) -> None:
    tier = NonsenseTier()
    tier.answer = answer
    breaker = Breaker(tier, slow_s=SLOW_S)
    for _ in range(BAD_CALLS_MAX):
        assert breaker.state is BreakerState.CLOSED
        assert list(breaker.lookup([b"a"])) == [False]
    assert breaker.state is BreakerState.OPEN
    assert breaker.stats().counters["breaker_missed_chunks"] == BAD_CALLS_MAX


@pytest.mark.parametrize(
    "answer",
    [
        None,
        True,
        Outcome(),
        Outcome((b"b",)),
        Outcome((b"a", b"b")),
        Outcome((b"a", b"a")),
        Outcome((b"a",), {b"a": Failure.MISSING}),
    ],
)
@pytest.mark.parametrize("method", ["store", "load"])
async def test_an_outcome_that_does_not_tell_of_each_key_once_fails_all(answer: Any, method: str) -> None:
    tier = NonsenseTier()
    tier.answer = answer
    breaker = Breaker(tier, slow_s=SLOW_S)
    for _ in range(BAD_CALLS_MAX):
        assert breaker.state is BreakerState.CLOSED
        assert (await getattr(breaker, method)([b"a"], BUFFER)).failed == {b"a": Failure.IO_ERROR}
    assert breaker.state is BreakerState.OPEN


async def test_not_known_yet_is_passed_on() -> None:
    tier = NonsenseTier()
    tier.answer = [None, True]
    assert Breaker(tier, slow_s=SLOW_S).lookup([b"a", b"b"]) == [None, True]


async def test_what_a_tier_raises_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock, tier = Clock(), RaisingTier()
    breaker = Breaker(tier, slow_s=SLOW_S, clock=clock)
    tier.error = ValueError("a bug")
    for _ in range(2):
        for _ in range(BAD_CALLS_MAX - 1):
            breaker.lookup([b"a"])
            breaker.stats()
        await breaker.load([b"a"], BUFFER)
        clock.now_s += LOG_EVERY_S
    lines = [record.getMessage() for record in caplog.records if record.exc_info]
    assert len(lines) == 2
    assert f"{2 * BAD_CALLS_MAX - 2} more" in lines[1]


class QueueingTier(MemoryTier):
    """A tier that works on one call after the other, and says nothing of what it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = asyncio.Semaphore(0)

    async def store(self, keys, buffers):
        await self.turns.acquire()
        return await super().store(keys, buffers)


async def test_calls_in_a_queue_do_not_hang_while_those_before_them_end() -> None:
    clock, tier = Clock(), QueueingTier()
    breaker = Breaker(tier, slow_s=SLOW_S, clock=clock)
    calls = [asyncio.ensure_future(breaker.store([b"%d" % i], BUFFER)) for i in range(20)]
    await asyncio.sleep(0)
    for call in calls[:-1]:
        clock.now_s += SLOW_S * 0.9
        tier.turns.release()
        assert (await call).succeeded
        assert breaker.state is BreakerState.CLOSED
    clock.now_s += SLOW_S + 0.1
    assert breaker.state is BreakerState.OPEN, "nothing has ended before the last one since"
    tier.turns.release()
    await calls[-1]


@pytest.mark.parametrize("why", sorted(DEVICE_FAILURES))
async def test_a_tier_that_names_why_it_cannot_opens_it(rig: Rig, why: Failure) -> None:
    rig.tier.why = why
    rig.tier.refuses = True
    for _ in range(BAD_CALLS_MAX):
        assert await rig.load() is why
    assert rig.state() is BreakerState.OPEN


@pytest.mark.parametrize("why", [Failure.NO_SPACE, Failure.DROPPED, Failure.INDEX_FULL])
async def test_a_tier_that_has_chosen_leaves_it_closed(rig: Rig, why: Failure) -> None:
    rig.tier.why = why
    rig.tier.refuses = True
    for _ in range(2 * BAD_CALLS_MAX):
        assert await rig.load() is why
    assert rig.state() is BreakerState.CLOSED


@pytest.mark.parametrize("why", sorted(DEVICE_FAILURES))
async def test_what_a_tier_calls_no_sample_leaves_it_as_it_is(rig: Rig, why: Failure) -> None:
    rig.tier.why, rig.tier.refuses, rig.tier.is_sample = why, True, False
    for _ in range(2 * BAD_CALLS_MAX):
        assert await rig.load() is why
    assert rig.state() is BreakerState.CLOSED
    rig.tier.is_sample = True
    for _ in range(BAD_CALLS_MAX):
        await rig.load()
    assert rig.state() is BreakerState.OPEN
    rig.clock.now_s += PAUSE_S + 0.1
    rig.tier.is_sample = False
    assert await rig.load() is why, "the trial"
    assert rig.state() is BreakerState.TRYING, "which says nothing: the next call is one, too"


async def test_of_several_calls_the_one_that_hangs_opens_it(rig: Rig) -> None:
    rig.tier.gate.clear()
    hanging = asyncio.create_task(rig.load())
    await asyncio.sleep(0)
    rig.clock.now_s += SLOW_S / 2
    fresh = asyncio.create_task(rig.load())
    await asyncio.sleep(0)
    assert rig.breaker.lookup([b"a"]) == [True]
    rig.clock.now_s += SLOW_S / 2 + 0.1
    assert rig.breaker.lookup([b"a"]) == [False], "the first call hangs, though the second one does not"
    rig.tier.gate.set()
    await asyncio.gather(hanging, fresh)


async def test_one_good_call_after_the_pause_closes_it(rig: Rig) -> None:
    await rig.trip()
    rig.tier.refuses = False
    rig.clock.now_s += PAUSE_S
    assert rig.state() is BreakerState.TRYING
    assert await rig.load() is None
    assert rig.state() is BreakerState.CLOSED
    assert list(rig.breaker.lookup([b"a"])) == [True]


async def test_only_one_call_at_a_time_tries(rig: Rig) -> None:
    await rig.trip()
    rig.tier.refuses = False
    rig.clock.now_s += PAUSE_S
    rig.tier.gate.clear()
    trial = asyncio.ensure_future(rig.load())
    await asyncio.sleep(0)
    assert list(rig.breaker.lookup([b"a"])) == [False]
    assert await rig.load() is Failure.MISSING
    rig.tier.gate.set()
    assert await trial is None
    assert rig.state() is BreakerState.CLOSED


async def test_each_bad_trial_doubles_the_pause_up_to_a_bound(rig: Rig) -> None:
    await rig.trip()
    pause_s = PAUSE_S
    for _ in range(8):
        rig.clock.now_s += pause_s - 0.01
        assert rig.state() is BreakerState.OPEN
        rig.clock.now_s += 0.01
        assert await rig.load() is Failure.IO_ERROR
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
    assert rig.breaker.stats().counters["breaker_openings"] == 1


async def test_a_cancelled_trial_says_nothing_and_the_next_call_tries(rig: Rig) -> None:
    await rig.trip()
    rig.tier.refuses = False
    rig.clock.now_s += PAUSE_S
    rig.tier.gate.clear()
    trial = asyncio.ensure_future(rig.load())
    await asyncio.sleep(0)
    trial.cancel()
    await asyncio.wait([trial])
    rig.tier.gate.set()
    assert await rig.load() is None
    assert rig.state() is BreakerState.CLOSED


async def test_an_invalidation_reaches_the_tier_even_while_it_is_open(rig: Rig) -> None:
    await rig.trip()
    invalidates = ability(rig.breaker, Invalidates)  # type: ignore[type-abstract]
    assert invalidates is not None
    await invalidates.invalidate()
    assert not rig.tier.chunks


def test_uses_reach_the_tier_behind_breakers_open_or_not() -> None:
    tier = CountingTier()
    counts = ability(Breaker(Breaker(tier, slow_s=1.0), slow_s=1.0), CountsUses)  # type: ignore[type-abstract]
    assert counts is not None
    counts.used([b"a"])
    assert tier.told == [b"a"]


def test_a_breaker_has_no_ability_that_its_tier_lacks() -> None:
    breaker = Breaker(Bare(MemoryTier()), slow_s=1.0)
    assert ability(breaker, Invalidates) is None  # type: ignore[type-abstract]
    assert ability(breaker, ReportsRemovals) is None  # type: ignore[type-abstract]
    assert ability(breaker, CountsUses) is None  # type: ignore[type-abstract]
    assert ability(Breaker(breaker, slow_s=1.0), Wrapper) is not None  # type: ignore[type-abstract]
