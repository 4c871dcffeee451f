"""What moves between slots and the tiers below, and what a flush, a stop or an invalidation does to it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Rig, Slots, rigged

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement import mover as mover_module
from kvtier.engine.movement import queues as queues_module
from kvtier.engine.movement.cascades import Cascades
from kvtier.engine.movement.losses import calling
from kvtier.engine.movement.mover import Mover
from kvtier.engine.movement.placement import Presence
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


def test_a_tier_that_hangs_when_it_hears_of_new_weights_is_no_longer_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mover_module, "INVALIDATE_S", SHORT_S)
    hanging, other = MemoryTier("hanging"), MemoryTier("other")
    monkeypatch.setattr(hanging, "invalidate", asyncio.Event().wait)
    hanging.chunks[b"old"] = bytes(SLOT_BYTES)
    rig = Above(hanging, other)
    with pytest.raises(TierError, match="hanging: it could not be told"):
        rig.loop.submit(rig.chain.clear()).result(PATIENCE_S)
    rig.store(b"new")
    with pytest.raises(TierError, match="no longer used"):
        rig.flush()
    assert rig.chain.lookup([b"old", b"new"]) == [False, True]
    assert (set(hanging.chunks), set(other.chunks)) == ({b"old"}, {b"new"})
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


def test_a_drive_that_comes_back_late_makes_room_for_stores_though_the_other_still_hangs(
    two: TwoDrives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "PAUSE_S", SHORT_S / 10)
    other = asyncio.Event()
    store = two.other.store

    async def held(keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        await other.wait()
        return await store(keys, buffers)

    monkeypatch.setattr(two.other, "store", held)
    two.gate(opened=False)
    keys = [b"%d" % number for number in range(3000)]  # more than may be on their way
    two.chain.commit(two.chain.reserve(two.chain.new_prompt(), keys).slots)
    queue = two.chain._placement.cascades._queues[0]
    two.loop.submit(_until(lambda: queue.is_failing)).result(PATIENCE_S)  # no part came back in time
    two.loop.submit(_call(other.set)).result(PATIENCE_S)
    share = next(share for share in two.shares(keys) if two.other.name == owner(two, share[0]))
    two.loop.submit(_until(lambda: set(share) <= two.other.chunks.keys())).result(PATIENCE_S)
    assert not two.hanging.chunks


def owner(two: TwoDrives, key: bytes) -> str:
    return two.tier._drives[two.tier._ranking.of(key)[0]].name


# Several tiers: one that is slow, fails or hangs delays no other, and what it lacks it gets later.


class Moody(MemoryTier):
    """A tier that hangs, fails or raises while it is in that mood."""

    mood = ""

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        if self.mood == "raises":
            raise OSError("a mood")
        if self.mood == "fails":
            return Outcome(failed=dict.fromkeys(keys, Failure.IO_ERROR))
        if self.mood == "hangs":
            self.gate.clear()
        return await super().store(keys, buffers)


class Three:
    """A chain of few slots over three tiers of which one is moody."""

    def __init__(
        self,
        moody: int = 0,
        slots: int = 8,
        unfilled: frozenset[str] = frozenset(),
        deadlines_s: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.loop, self.slots = LoopThread(), Slots(slots)
        self.tiers = [Moody(name) for name in ("first", "second", "third")]
        self.moody = self.tiers[moody]
        self.others = [tier for tier in self.tiers if tier is not self.moody]
        self.chain = BothFaces(
            self.slots, self.tiers, self.loop, load_deadlines_s=deadlines_s, unfilled=unfilled
        )

    def put(self, *keys: bytes) -> None:
        slots = self.chain.reserve(self.chain.new_prompt(), keys).slots
        for slot in slots:
            self.slots.buffer(slot)[:] = pattern(slot.key, SLOT_BYTES)
        self.chain.commit(slots)

    def until(self, is_so: Callable[[], bool]) -> None:
        self.loop.submit(_until(is_so)).result(PATIENCE_S)

    def drain(self) -> None:
        self.loop.submit(self.chain.mover.drain()).result(PATIENCE_S)

    def load(self, *keys: bytes) -> None:
        slots, failed = self.loop.submit(self.chain.fetch(self.chain.new_prompt(), keys)).result(PATIENCE_S)
        assert not failed
        self.chain.touch(self.chain.new_prompt(), keys)
        self.chain.release(slots)

    def mend(self) -> None:
        self.moody.mood = ""
        self.loop.submit(_call(self.moody.gate.set)).result(PATIENCE_S)

    def close(self) -> None:
        self.mend()
        self.loop.submit(self.chain.mover.stop()).result(PATIENCE_S)
        self.chain.check()
        assert self.chain.stats().pinned_slots == 0
        self.loop.close()


@pytest.mark.parametrize("mood", ["hangs", "fails", "raises"])
@pytest.mark.parametrize("moody", [0, 1, 2])
def test_a_tier_in_any_mood_keeps_no_chunk_from_the_others_and_gets_all_when_it_is_well(
    moody: int, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "PAUSE_S", SHORT_S / 10)
    rig = Three(moody)
    rig.moody.mood = mood
    keys = [b"%d" % number for number in range(6)]
    for key in keys:
        rig.put(key)
    rig.until(lambda: all(set(tier.chunks) == set(keys) for tier in rig.others))
    assert not rig.moody.chunks
    if mood != "hangs":
        rig.loop.submit(rig.chain.mover.flush(None)).result(PATIENCE_S)  # it is durable in two tiers
    rig.mend()
    rig.until(lambda: set(rig.moody.chunks) == set(keys))  # without a new store
    assert rig.moody.chunks == {key: pattern(key, SLOT_BYTES) for key in keys}
    rig.close()


@pytest.mark.parametrize("lasts", [True, False])
def test_a_flush_ends_though_a_tier_hangs_and_says_which_until_it_is_well(
    lasts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover_module, "STILL_S", SHORT_S)
    rig = Three(moody=1)
    rig.others[0].mood = rig.others[1].mood = "fails"  # else it would be durable there
    rig.moody.mood = "hangs"
    rig.put(b"a", b"b")
    caller = None if lasts else calling()
    for _ in range(2):
        with pytest.raises(TierError, match="second: 2 chunks are on their way"):
            rig.loop.submit(rig.chain.mover.flush(caller)).result(PATIENCE_S)
    monkeypatch.setattr(mover_module, "STILL_S", PATIENCE_S)
    rig.mend()
    rig.loop.submit(rig.chain.mover.flush(calling())).result(PATIENCE_S)
    assert set(rig.moody.chunks) == {b"a", b"b"}
    for tier in rig.others:
        tier.mood = ""
    rig.close()


def runs_of(monkeypatch: pytest.MonkeyPatch) -> list[Mover]:
    """Gets an item for each time that a mover looks for what may move."""
    runs: list[Mover] = []
    pump = Mover._pump

    def noted(mover: Mover) -> None:
        runs.append(mover)
        pump(mover)

    monkeypatch.setattr(Mover, "_pump", noted)
    return runs


def test_the_loop_waits_while_a_tier_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, runs = [b"a", b"b", b"c", b"d"], runs_of(monkeypatch)
    loop, tier = LoopThread(), MemoryTier()
    chain = BothFaces(Slots(8), [tier], loop, load_deadlines_s={"memory": 0.01})
    loop.submit(_call(tier.gate.clear)).result(5)
    chain.commit(chain.reserve(chain.new_prompt(), keys).slots)
    (queue,) = chain._placement.cascades._queues
    loop.submit(_until(lambda: queue.is_failing)).result(5)
    for _ in range(50):
        loop.submit(asyncio.sleep(0)).result(5)
    assert len(runs) < 20, "only what happens makes it look again"
    loop.submit(_call(tier.gate.set)).result(5)
    loop.submit(chain.mover.drain()).result(5)
    assert tier.chunks.keys() == set(keys)
    loop.submit(chain.mover.stop()).result(5)
    chain.check()
    loop.close()


def test_a_flush_ends_though_the_flush_of_a_tier_hangs_and_every_other_tier_is_flushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mover_module, "STILL_S", SHORT_S)
    rig, never = Three(moody=1), asyncio.Event()
    monkeypatch.setattr(rig.moody, "flush", never.wait)
    rig.put(b"a")
    with pytest.raises(TierError, match="second: it has not confirmed"):
        rig.loop.submit(rig.chain.mover.flush(calling())).result(PATIENCE_S)
    assert all(("flush", ()) in tier.log for tier in rig.others)
    rig.loop.submit(rig.chain.mover.end_flushes()).result(PATIENCE_S)
    rig.close()


def test_a_flush_waits_for_a_slow_tier_for_as_long_as_it_takes_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its limit is for a tier that stands still, not for how much there is to bring down."""
    rig = Three(slots=64)
    for tier in rig.others:
        tier.mood = "fails"
    rig.moody.mood = "hangs"
    rig.put(*(b"%02d" % number for number in range(32)))
    rig.until(lambda: not rig.moody.gate.is_set())
    limits: list[float] = []
    until = rig.chain.mover.until

    async def once_for_each_batch(is_so: Callable[[], bool], limit_s: float | None = None) -> bool:
        """The limit passes whenever something has arrived."""
        arrived = len(rig.moody.chunks)
        limits.append(limit_s or 0.0)
        rig.moody.gate.set()
        await until(lambda: is_so() or len(rig.moody.chunks) > arrived)
        return is_so()

    monkeypatch.setattr(rig.chain.mover, "until", once_for_each_batch)
    rig.moody.mood = ""
    rig.loop.submit(rig.chain.mover.flush(calling())).result(PATIENCE_S)
    assert len(rig.moody.chunks) == 32
    assert len(limits) > 2
    monkeypatch.undo()
    rig.close()


def test_a_far_tier_that_hangs_holds_no_slot_that_another_wants_and_gets_its_chunks_from_the_near_one() -> (
    None
):
    rig = Three(moody=2)
    rig.moody.mood = "hangs"
    keys = [b"%02d" % number for number in range(32)]  # four times the slots
    for start in range(0, len(keys), 2):
        rig.put(*keys[start : start + 2])
        rig.until(lambda end=start + 2: set(rig.tiers[1].chunks) >= set(keys[:end]))  # type: ignore[misc]
    assert rig.chain.stats().pinned_slots <= 2, "those on their way to it, and no more"
    assert rig.chain.stats().pending_chunks["third"] == len(keys)
    rig.mend()
    rig.drain()
    assert rig.moody.chunks == {key: pattern(key, SLOT_BYTES) for key in keys}
    rig.close()


def test_a_chunk_that_no_tier_above_has_any_more_is_left_out_and_counted() -> None:
    rig = Three(moody=2)
    rig.moody.mood = "hangs"
    rig.put(b"holds", b"up")
    rig.until(lambda: not rig.moody.gate.is_set())
    rig.put(b"a")
    rig.until(lambda: b"a" in rig.tiers[1].chunks)
    for tier in rig.tiers[:2]:
        del tier.chunks[b"a"]
    for number in range(8):
        rig.put(b"%d" % number)
        rig.until(lambda key=b"%d" % number: key in rig.tiers[0].chunks)  # type: ignore[misc]
    rig.mend()
    rig.drain()
    assert b"a" not in rig.moody.chunks
    assert rig.chain.stats().tiers["third"].counters["dropped_chunks"] == 1
    rig.close()


def test_a_near_tier_whose_loads_hang_keeps_no_far_one_from_what_lies_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, never = Three(moody=2, deadlines_s={"first": SHORT_S, "third": SHORT_S}), asyncio.Event()

    async def hangs(keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        await never.wait()
        raise OSError("nobody waits for it any more")

    rig.moody.mood = "hangs"
    rig.put(b"holds", b"up")
    rig.until(lambda: not rig.moody.gate.is_set())
    for key in (b"a", b"b", *(b"%d" % number for number in range(8))):  # of the first two only keys are left
        rig.put(key)
        rig.until(lambda key=key: all(key in tier.chunks for tier in rig.others))  # type: ignore[misc]
    del rig.tiers[1].chunks[b"a"]
    monkeypatch.setattr(rig.tiers[0], "load", hangs)
    rig.mend()
    rig.put(b"new")
    rig.until(lambda: b"new" in rig.moody.chunks)
    rig.drain()
    assert rig.moody.chunks[b"b"] == pattern(b"b", SLOT_BYTES), "the second tier has it, too"
    assert b"a" not in rig.moody.chunks
    rig.loop.submit(_call(never.set)).result(PATIENCE_S)
    rig.close()


@pytest.mark.parametrize("unfilled", [frozenset[str](), frozenset({"first"})])
def test_a_hit_far_down_fills_the_nearer_tiers_but_those_that_want_no_fills(unfilled: frozenset[str]) -> None:
    rig = Three(unfilled=unfilled)
    rig.tiers[2].chunks[b"a"] = pattern(b"a", SLOT_BYTES)
    for _ in range(2):
        rig.load(b"a")
        rig.drain()
    assert set(rig.tiers[0].chunks) == {b"a"} - ({b"a"} if unfilled else set())
    assert rig.tiers[1].chunks == rig.tiers[2].chunks
    assert ("store", (b"a",)) not in rig.tiers[2].log
    rig.put(b"b")
    rig.drain()
    assert b"b" in rig.tiers[0].chunks, "it gets what is stored"
    rig.close()


class Evicting(MemoryTier):
    """A tier that reports what it evicts."""

    def watch(self, report: Callable[[Sequence[bytes], RemoveReason], None]) -> None:
        self.report = report

    def evict(self, key: bytes) -> None:
        del self.chunks[key]
        self.report([key], RemoveReason.EVICTED)


def test_a_chunk_that_was_evicted_below_goes_down_again_when_it_is_used_and_not_before() -> None:
    lower = Evicting()
    rig = Above(lower)
    rig.store(b"a")
    rig.flush()
    lower.evict(b"a")
    rig.store(b"b")
    rig.flush()
    assert set(lower.chunks) == {b"b"}
    slots, _ = rig.loop.submit(rig.chain.fetch(rig.chain.new_prompt(), [b"a"])).result(5)
    rig.chain.release(slots)
    rig.chain.touch(rig.chain.new_prompt(), [b"a"])
    rig.loop.submit(_until(lambda: b"a" in lower.chunks)).result(5)
    rig.close()


def test_a_chunk_that_was_evicted_below_goes_down_again_when_it_is_stored() -> None:
    lower = Evicting()
    rig = Above(lower)
    rig.store(b"a")
    rig.flush()
    lower.evict(b"a")
    rig.loop.submit(rig.chain.mover.drain()).result(5)
    rig.store(b"a")
    rig.flush()
    assert set(lower.chunks) == {b"a"}
    rig.close()


def test_what_is_stored_while_a_tier_hears_of_new_weights_reaches_it_afterwards() -> None:
    lower = MemoryTier()
    rig = Above(lower)
    may, invalidate = asyncio.Event(), lower.invalidate

    async def held() -> None:
        await may.wait()
        await invalidate()

    lower.invalidate = held  # type: ignore[method-assign]
    rig.chain.invalidate()
    rig.store(b"new")
    rig.loop.submit(asyncio.sleep(0)).result(5)
    assert not lower.log
    rig.loop.submit(_call(may.set)).result(5)
    rig.flush()
    assert set(lower.chunks) == {b"new"}
    rig.close()


def test_the_loop_waits_while_a_tier_that_failed_hears_of_new_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = runs_of(monkeypatch)
    lower = MemoryTier()
    rig = Above(lower)
    may = asyncio.Event()

    async def held() -> None:
        await may.wait()

    lower.invalidate = held  # type: ignore[method-assign]
    rig.chain.invalidate()
    (queue,) = rig.chain._placement.cascades._queues
    queue.is_overdue()
    rig.store(b"new")
    for _ in range(50):
        rig.loop.submit(asyncio.sleep(0)).result(5)
    assert len(runs) < 20, "only what happens makes it look again"
    rig.loop.submit(_call(may.set)).result(5)
    rig.flush()
    assert set(lower.chunks) == {b"new"}
    rig.close()


def test_a_flush_treats_what_is_noted_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, locked = Above(MemoryTier()), list[bool]()
    rig.store(b"a")
    catch_up = Cascades.catch_up

    def watched(cascades: Cascades) -> bool:
        locked.append(rig.chain._lock.locked())
        return catch_up(cascades)

    monkeypatch.setattr(Cascades, "catch_up", watched)
    rig.flush()
    assert locked
    assert all(locked), "a step may note more on another thread"
    rig.close()


def test_a_tier_that_raises_is_logged_once_and_not_for_each_batch(caplog: pytest.LogCaptureFixture) -> None:
    rig = Above(FailingTier(raises=OSError("gone")))
    for number in range(4):
        rig.store(b"%d" % number)
        with pytest.raises(TierError):
            rig.flush()
    assert len([record for record in caplog.records if record.exc_info]) == 1
    rig.close()


def test_a_failing_tier_keeps_no_slot_from_eviction() -> None:
    rig = Above(FailingTier(Failure.IO_ERROR))
    for number in range(8):  # twice the slots
        rig.store(b"%d" % number)
        with pytest.raises(TierError):
            rig.flush()
    assert rig.chain.stats().pinned_slots == 0
    rig.close()
