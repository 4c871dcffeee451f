"""What moves between slots and the tiers below, and what a flush, a stop or an invalidation does to it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Rig, Slots, rigged

from kvtier.engine.loop import LoopThread
from kvtier.engine.placement import Presence
from kvtier.tiers.base import Buffer, Failure, Outcome, RemoveReason, Tier
from kvtier.tiers.breaker import Breaker
from kvtier.tiers.errors import NotDurable, TierError
from kvtier.tiers.nvme.striped import Drive, StripedTier
from kvtier.tiers.testing import Bare, MemoryTier, pattern


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rigged(4)


def test_stop_gives_up_what_waits_and_frees_every_pin(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b"])
    rig.loop.submit(rig.chain.mover.stop()).result(5)
    assert rig.chain.stats().pending_chunks == {"memory": 0}
    assert rig.chain.stats().pinned_slots == 0


def test_stop_frees_the_pins_of_what_has_not_taken_its_first_step(rig: Rig) -> None:
    async def stop_at_once() -> None:
        rig.chain.commit(rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots)
        await asyncio.sleep(0)  # the cascade is there now, and comes after us
        await rig.chain.mover.stop()

    rig.loop.submit(stop_at_once()).result(5)
    assert rig.chain.stats().pinned_slots == 0


def test_nothing_begins_to_move_after_a_stop(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)

    async def acquire_and_stop() -> Presence:
        (found,) = rig.chain.acquire(rig.chain.new_prompt(), [b"x"])
        assert found.slot is not None
        await rig.chain.mover.stop()
        rig.chain.release([found.slot])
        return rig.chain.state_of(found.slot)

    assert rig.loop.submit(acquire_and_stop()).result(5) is Presence.MISS
    assert rig.lower.log == []
    assert rig.chain.stats().pinned_slots == 0


def test_a_chunk_invalidated_between_two_tiers_does_not_reach_the_second() -> None:
    loop, pinned = LoopThread(), Slots(4)
    first, second = MemoryTier("first"), MemoryTier("second")
    chain = BothFaces(pinned, [first, second], loop, load_deadlines_s={})
    loop.submit(_call(first.gate.clear)).result(5)
    chain.commit(chain.reserve(chain.new_prompt(), [b"old"]).slots)
    loop.submit(_until(lambda: bool(first.log))).result(5)
    chain.invalidate()
    loop.submit(_call(first.gate.set)).result(5)
    loop.submit(chain.mover.drain()).result(5)
    assert b"old" not in second.chunks
    loop.submit(chain.mover.stop()).result(5)
    chain.check()
    loop.close()


async def _call(function: Callable[[], object]) -> None:
    function()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - other threads and tasks bring it about
        await asyncio.sleep(0)


class DeafTier(MemoryTier):
    """A tier that cannot be told that the weights changed."""

    async def invalidate(self) -> None:
        raise OSError("no more")


def test_what_new_weights_invalidate_is_counted_in_every_tier() -> None:
    loop, lower = LoopThread(), MemoryTier()
    lower.chunks |= {b"x": bytes(SLOT_BYTES), b"y": bytes(SLOT_BYTES)}
    chain = BothFaces(Slots(4), [lower], loop, load_deadlines_s={})
    chain.commit(chain.reserve(chain.new_prompt(), [b"a"]).slots)
    loop.submit(chain.mover.drain()).result(5)
    chain.invalidate()
    loop.submit(_until(lambda: not lower.chunks)).result(5)
    loop.submit(chain.mover.stop()).result(5)
    tiers = chain.stats().tiers
    assert (
        tiers["pinned"].counters["invalidated_chunks"],
        tiers["memory"].counters["invalidated_chunks"],
    ) == (1, 3)
    loop.close()


def test_a_tier_that_could_not_be_told_of_new_weights_is_never_asked_again() -> None:
    loop, lower = LoopThread(), DeafTier()
    lower.chunks[b"old"] = bytes(SLOT_BYTES)
    chain = BothFaces(Slots(4), [lower], loop, load_deadlines_s={})
    assert chain.lookup([b"old"]) == [True]
    chain.invalidate()
    loop.submit(_call(lambda: None)).result(5)
    chain.commit(chain.reserve(chain.new_prompt(), [b"new"]).slots)
    loop.submit(chain.mover.drain()).result(5)
    assert chain.lookup([b"old", b"new"]) == [False, True]
    assert b"new" not in lower.chunks
    loop.submit(chain.mover.stop()).result(5)
    chain.check()
    loop.close()


class FailingTier(MemoryTier):
    """A tier whose stores fail for a reason, or by an exception, while there is one."""

    def __init__(self, why: Failure | None = None, raises: Exception | None = None) -> None:
        super().__init__()
        self.why, self.raises = why, raises

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        if self.raises is not None:
            raise self.raises
        if self.why is not None:
            return Outcome(failed=dict.fromkeys(keys, self.why))
        return await super().store(keys, buffers)

    async def flush(self) -> None:
        await super().flush()
        if self.why is Failure.CLOSED:
            raise TierError(self.name, "not durable")


class Above:
    """A chain over some tiers, for tests of what a flush says."""

    def __init__(self, *lower: Tier) -> None:
        self.loop = LoopThread()
        self.chain = BothFaces(Slots(4), lower, self.loop, load_deadlines_s={})

    def store(self, *keys: bytes) -> None:
        self.chain.commit(self.chain.reserve(self.chain.new_prompt(), keys).slots)

    def flush(self) -> None:
        """Flush, and hear of what was lost."""
        try:
            self.loop.submit(self.chain.mover.flush(None)).result(5)
        except NotDurable as error:
            error.told()
            raise

    def close(self) -> None:
        self.loop.submit(self.chain.mover.stop()).result(5)
        self.chain.check()
        self.loop.close()


@pytest.mark.parametrize("why", [Failure.IO_ERROR, Failure.DROPPED])
def test_a_flush_tells_once_of_chunks_that_the_last_tier_failed_to_take(why: Failure) -> None:
    lower = FailingTier(why)
    rig = Above(lower)
    rig.store(b"a", b"b")
    with pytest.raises(TierError, match=rf"memory: 2 chunks .* are not in it \({why} 2\)"):
        rig.flush()
    rig.flush()
    lower.why = None
    rig.store(b"c")
    rig.flush()
    rig.close()


def test_a_flush_tells_of_a_tier_that_raised() -> None:
    rig = Above(FailingTier(raises=OSError("gone")))
    rig.store(b"a")
    with pytest.raises(TierError, match=r"1 chunks .* \(io_error 1\)"):
        rig.flush()
    rig.close()


def test_a_flush_says_nothing_of_what_placement_left_out() -> None:
    lower = FailingTier(Failure.NO_SPACE)  # above the cap
    rig = Above(lower)
    rig.store(b"a", b"b", b"c")  # more than may be on their way down
    rig.flush()
    assert rig.chain.stats().tiers["memory"].counters["dropped_chunks"] == 3
    rig.close()


def test_a_chunk_that_a_nearer_tier_failed_to_take_is_durable_in_the_last_one() -> None:
    first, last = FailingTier(Failure.IO_ERROR), MemoryTier()
    rig = Above(first, last)
    rig.store(b"a")
    rig.flush()
    assert set(last.chunks) == {b"a"}
    rig.close()


def test_every_tier_is_flushed_also_after_one_that_fails() -> None:
    first, last = FailingTier(Failure.CLOSED), MemoryTier()
    rig = Above(first, last)
    with pytest.raises(TierError, match="not durable"):
        rig.flush()
    assert ("flush", ()) in last.log
    rig.close()


class RaisingTier(MemoryTier):
    """A tier of another package whose mistakes show as any exception."""

    raises: frozenset[str] = frozenset()

    def _check(self, method: str) -> None:
        if method in self.raises:
            raise ValueError("a mistake")

    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        self._check("lookup")
        return super().lookup(keys)

    async def remove(self, keys: Sequence[bytes], reason: RemoveReason) -> None:
        self._check("remove")
        await super().remove(keys, reason)

    async def flush(self) -> None:
        self._check("flush")
        await super().flush()


def test_every_tier_is_flushed_also_after_one_that_raises_anything() -> None:
    first, last = RaisingTier(), MemoryTier()
    first.raises = frozenset({"flush"})
    rig = Above(first, last)
    with pytest.raises(TierError, match="a mistake"):
        rig.flush()
    assert ("flush", ()) in last.log
    rig.close()


@pytest.mark.parametrize("method", ["lookup", "remove"])
def test_a_tier_that_raises_anything_does_not_keep_a_removal_from_the_others(method: str) -> None:
    first, last = RaisingTier(), MemoryTier()
    rig = Above(first, last)
    rig.store(b"a")
    rig.flush()
    first.raises = frozenset({method})
    with pytest.raises(TierError, match="a mistake"):
        rig.loop.submit(rig.chain.remove([b"a"])).result(5)
    assert last.chunks == {}
    assert set(first.chunks) == ({b"a"} if method == "remove" else set())
    rig.close()


def test_a_chunk_that_was_invalidated_on_its_way_down_is_not_missed() -> None:
    lower = FailingTier(Failure.DROPPED)
    rig = Above(lower)
    gate = asyncio.Event()
    store = lower.store

    async def gated(keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        began.set()
        await gate.wait()
        return await store(keys, buffers)

    began = threading.Event()
    lower.store = gated  # type: ignore[method-assign]
    rig.store(b"old")
    assert began.wait(5)
    rig.chain.invalidate()
    rig.loop.submit(_call(gate.set)).result(5)
    rig.flush()
    rig.close()


def test_a_flush_to_a_tier_that_is_no_longer_used_fails() -> None:
    rig = Above(DeafTier())
    rig.chain.invalidate()
    rig.store(b"a")
    with pytest.raises(TierError, match="no longer used"):
        rig.flush()
    rig.close()


def test_a_tier_without_invalidate_is_no_longer_used_after_new_weights() -> None:
    """It would serve chunks of the old weights."""
    lower = MemoryTier()
    lower.chunks[b"old"] = bytes(SLOT_BYTES)
    rig = Above(Breaker(Bare(lower), slow_s=5.0))
    assert rig.chain.lookup([b"old"]) == [True]
    rig.chain.invalidate()
    rig.loop.submit(_call(lambda: None)).result(5)
    assert rig.chain.lookup([b"old"]) == [False]
    with pytest.raises(TierError, match="no longer used"):
        rig.flush()
    rig.close()


def test_a_tier_that_could_not_be_told_takes_no_other_with_it() -> None:
    deaf, other = DeafTier("deaf"), MemoryTier("other")
    rig = Above(deaf, other)
    rig.chain.invalidate()
    rig.loop.submit(_call(lambda: None)).result(5)
    rig.store(b"new")
    with pytest.raises(TierError, match="deaf: it could not be told"):
        rig.flush()
    assert deaf.chunks == {}
    assert set(other.chunks) == {b"new"}
    rig.close()


SHORT_S = 0.1  # a deadline that a test waits for
PATIENCE_S = 10.0


class TwoDrives:
    """A chain over two drives, of which the first can be made to hang; its breaker never opens."""

    def __init__(self) -> None:
        self.loop, self.hanging, self.other = LoopThread(), MemoryTier("a"), MemoryTier("b")
        drives = [Drive(one.name, Breaker(one, slow_s=PATIENCE_S), 1.0) for one in (self.hanging, self.other)]
        self.tier = StripedTier("nvme", drives)
        self.chain = BothFaces(
            Slots(4096), [self.tier], self.loop, load_deadlines_s={self.tier.name: SHORT_S}
        )

    def gate(self, opened: bool) -> None:
        switch = self.hanging.gate.set if opened else self.hanging.gate.clear
        self.loop.submit(_call(switch)).result(5)

    def shares(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        return [[keys[position] for position in positions] for positions in self.tier.divide(keys)]


@pytest.fixture
def two() -> Iterator[TwoDrives]:
    two = TwoDrives()
    yield two
    two.gate(opened=True)
    two.loop.submit(two.chain.mover.stop()).result(5)
    two.chain.check()
    assert two.chain.stats().pinned_slots == 0
    two.loop.close()


def test_a_load_gets_what_came_in_time_though_one_of_two_drives_hangs(two: TwoDrives) -> None:
    keys = [b"%d" % number for number in range(40)]
    for tier in (two.hanging, two.other):
        tier.chunks.update({key: pattern(key, SLOT_BYTES) for key in keys})
    two.gate(opened=False)
    ready, failed = two.loop.submit(two.chain.fetch(two.chain.new_prompt(), keys)).result(5)
    of = {tuple(sorted(share)) for share in two.shares(keys)}
    came = tuple(sorted(slot.key for slot in ready))
    assert {came, tuple(sorted(failed))} == of
    assert set(failed.values()) == {Failure.TIMEOUT}
    two.chain.release(ready)


def test_one_of_two_drives_that_hangs_holds_up_no_store_of_the_other(two: TwoDrives) -> None:
    two.gate(opened=False)
    keys = [b"%d" % number for number in range(1024)]  # in several times the batches that move at once
    slots = two.chain.reserve(two.chain.new_prompt(), keys).slots
    for slot in slots:
        two.chain._pinned.buffer(slot)[:] = pattern(slot.key, SLOT_BYTES)
    two.chain.commit(slots)
    share = next(share for share in two.shares(keys) if two.other.name == owner(two, share[0]))
    end_s = time.monotonic() + PATIENCE_S
    while not set(share) <= two.other.chunks.keys():
        assert time.monotonic() < end_s, f"{len(two.other.chunks)} of {len(share)} have arrived"
        time.sleep(SHORT_S / 10)
    assert not two.hanging.chunks


def owner(two: TwoDrives, key: bytes) -> str:
    return two.tier._drives[two.tier._ranking.of(key)[0]].name
