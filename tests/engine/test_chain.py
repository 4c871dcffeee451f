"""The chain over a memory tier: what is found, what moves, and what a slot is kept from."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, Rig, Slots, rigged

from kvtier.engine import chain as chain_module
from kvtier.engine.chain import Chain
from kvtier.engine.loop import LoopThread
from kvtier.engine.placement import Found, Presence
from kvtier.tiers.base import Buffer, Failure, Outcome
from kvtier.tiers.errors import TierError
from kvtier.tiers.testing import MemoryTier, pattern


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rigged(4)


def test_a_committed_chunk_is_found_and_cascades_down(rig: Rig) -> None:
    rig.put([b"a", b"b"])
    assert rig.chain.lookup([b"a", b"b", b"c"]) == [True, True, False]
    rig.drain()
    assert rig.lower.chunks == {key: pattern(key, SLOT_BYTES) for key in (b"a", b"b")}
    assert rig.chain.stats().pinned_slots == 0


def test_an_evicted_chunk_is_promoted_again(rig: Rig) -> None:
    rig.put([b"a", b"b"])
    rig.drain()
    rig.put([b"c", b"d", b"e", b"f"])
    rig.drain()
    slots, failed = rig.fetch([b"a"]).result(5)
    assert failed == {}
    assert bytes(rig.pinned.buffer(slots[0])) == pattern(b"a", SLOT_BYTES)
    rig.chain.release(slots)


def test_a_hit_below_is_pending_in_the_same_call_and_its_promotion_starts_at_once(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    (found,) = rig.chain.acquire([b"x"])
    assert found.presence is Presence.PENDING
    assert found.source == "memory"
    assert found.slot is not None
    slots, _ = rig.fetch([b"x"]).result(5)  # nobody asked for it but acquire
    assert rig.lower.log == [("load", (b"x",))]
    assert rig.chain.state_of(found.slot) is Presence.READY
    rig.chain.release([found.slot, *slots])


def test_what_a_step_wants_begins_to_move_when_the_step_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_module, "STEP_S", 3600.0)
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.chain.commit(rig.chain.reserve([b"a"]).slots, in_step=True)
    assert rig.chain.pin(b"x").presence is Presence.MISS
    assert rig.chain.promise(b"y").presence is Presence.MISS
    found = rig.chain.promise(b"x")
    assert found.presence is Presence.PENDING
    assert found.slot is not None
    rig.gate(opened=True)  # the loop has been there
    assert rig.lower.log == []
    rig.chain.begin()
    rig.drain()
    rig.chain.release([found.slot, *rig.fetch([b"x"]).result(5)[0]])
    assert sorted(rig.lower.log) == [("load", (b"x",)), ("store", (b"a",))]
    assert rig.chain.stats().counters["misses", "pinned"] == 1, "a pin that misses is no answer yet"


def test_what_a_step_commits_moves_though_no_other_step_follows(rig: Rig) -> None:
    rig.chain.commit(rig.chain.reserve([b"a"]).slots, in_step=True)
    rig.drain()
    assert rig.lower.log == [("store", (b"a",))]


def test_who_waits_for_what_a_step_was_promised_begins_with_it(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    found = rig.chain.promise(b"x")
    assert found.slot is not None
    slots, failed = rig.fetch([b"x"]).result(5)
    assert not failed
    rig.chain.release([found.slot, *slots])


def test_two_who_want_the_same_chunk_share_one_promotion(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.gate(opened=False)
    first, second = rig.fetch([b"x"]), rig.fetch([b"x"])
    rig.gate(opened=True)
    slots = first.result(5)[0] + second.result(5)[0]
    assert slots[0] is slots[1]
    assert rig.lower.log == [("load", (b"x",))]
    rig.chain.release(slots)


def test_a_chunk_that_fails_to_load_is_a_miss_and_frees_its_slot(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.lower.broken.add(b"x")
    slots, failed = rig.fetch([b"x"]).result(5)
    assert slots == []
    assert failed == {b"x": Failure.MISSING}
    assert rig.chain.acquire([b"x"])[0].presence is Presence.MISS
    assert rig.pinned.table.free_count == 4


def test_a_promotion_past_its_deadline_is_late_and_keeps_its_slot_until_it_returns(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.gate(opened=False)
    (found,) = rig.chain.acquire([b"x"])
    assert found.slot is not None
    rig.clock.now_s = 5.1
    assert rig.chain.state_of(found.slot) is Presence.LATE
    assert rig.chain.acquire([b"x"])[0].presence is Presence.LATE
    assert rig.chain.stats().counters["late_loads", "pinned"] == 1
    rig.chain.release([found.slot])
    assert rig.pinned.table.free_count == 3
    rig.gate(opened=True)
    slots, _ = rig.fetch([b"x"]).result(5)
    assert slots == [found.slot]
    rig.chain.release(slots)


def test_a_wanted_chunk_without_a_slot_is_counted_as_full(rig: Rig) -> None:
    rig.put([b"a", b"b", b"c", b"d"])
    rig.drain()
    held = [found.slot for found in rig.chain.acquire([b"a", b"b", b"c", b"d"]) if found.slot]
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    assert rig.chain.acquire([b"x"])[0].presence is Presence.FULL
    assert rig.chain.stats().counters["slotless", "pinned"] == 1
    rig.chain.release(held)
    (found,) = rig.chain.acquire([b"x"])
    assert found.slot is not None
    rig.chain.release([found.slot])


def test_what_waits_for_a_slow_disk_never_takes_more_than_half_of_the_slots(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b", b"c", b"d"])
    stats = rig.chain.stats()
    assert stats.dirty_chunks == 2
    assert stats.counters["dropped_chunks", "memory"] == 2
    assert len(rig.put([b"e", b"f"])) == 2
    rig.gate(opened=True)
    rig.drain()
    assert set(rig.lower.chunks) == {b"a", b"b"}


def test_an_abandoned_store_leaves_nothing(rig: Rig) -> None:
    slots = rig.chain.reserve([b"a"]).slots
    rig.chain.abandon(slots)
    assert rig.chain.lookup([b"a"]) == [False]
    assert rig.pinned.table.free_count == 4


def test_a_busy_slot_is_named_and_can_be_waited_for(rig: Rig) -> None:
    slots = rig.chain.reserve([b"a"]).slots
    again = rig.chain.reserve([b"a", b"b"])
    assert again.busy == [b"a"]
    assert [slot.key for slot in again.slots] == [b"b"]
    waiting = rig.loop.submit(rig.chain.settled([b"a"]))
    assert not waiting.done()
    rig.chain.commit(slots)
    waiting.result(5)
    rig.chain.commit(again.slots)


def test_nothing_stored_before_an_invalidation_is_found_after_it(rig: Rig) -> None:
    rig.put([b"a"])
    rig.drain()
    in_flight = rig.chain.reserve([b"b"]).slots
    rig.gate(opened=False)
    rig.put([b"c"])
    assert set(rig.chain.invalidate()) == {b"a", b"c"}
    assert rig.chain.lookup([b"a", b"b", b"c"]) == [False, False, False]
    rig.chain.commit(in_flight)
    assert rig.chain.lookup([b"b"]) == [False]
    rig.gate(opened=True)
    rig.put([b"d"])
    rig.drain()
    assert rig.chain.lookup([b"b", b"d"]) == [False, True]
    assert rig.pinned.table.leaving_count == 0


def test_a_cancelled_fetch_holds_nothing(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.gate(opened=False)

    async def cancelled() -> None:
        task = asyncio.ensure_future(rig.chain.fetch([b"x"]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    rig.loop.submit(cancelled()).result(5)
    rig.gate(opened=True)
    slots, _ = rig.fetch([b"x"]).result(5)
    rig.chain.release(slots)
    assert rig.chain.stats().pinned_slots == 0


def test_stop_gives_up_what_waits_and_frees_every_pin(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b"])
    rig.loop.submit(rig.chain.stop()).result(5)
    assert rig.chain.stats().dirty_chunks == 0
    assert rig.chain.stats().pinned_slots == 0


def test_stop_frees_the_pins_of_what_has_not_taken_its_first_step(rig: Rig) -> None:
    async def stop_at_once() -> None:
        rig.chain.commit(rig.chain.reserve([b"a"]).slots)
        await asyncio.sleep(0)  # the cascade is there now, and comes after us
        await rig.chain.stop()

    rig.loop.submit(stop_at_once()).result(5)
    assert rig.chain.stats().pinned_slots == 0


def test_nothing_begins_to_move_after_a_stop(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)

    async def wish_and_stop() -> Presence:
        (found,) = rig.chain.acquire([b"x"])
        assert found.slot is not None
        await rig.chain.stop()
        rig.chain.release([found.slot])
        return rig.chain.state_of(found.slot)

    assert rig.loop.submit(wish_and_stop()).result(5) is Presence.MISS
    assert rig.lower.log == []
    assert rig.chain.stats().pinned_slots == 0


def test_many_threads_may_use_a_chain_at_once() -> None:
    for rig in rigged(16):
        use_from_many_threads(rig)


def use_from_many_threads(rig: Rig) -> None:
    keys = [b"%d" % i for i in range(48)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(60):
                mine = [keys[(seed * 7 + turn * 3 + i) % len(keys)] for i in range(4)]
                rig.put(mine)
                slots, _ = rig.fetch(mine).result(10)
                for slot in slots:
                    assert bytes(rig.pinned.buffer(slot)) == pattern(slot.key, SLOT_BYTES)
                rig.chain.release(slots)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rig.drain()


def test_who_can_wait_gets_a_place_among_those_that_go_down_and_none_is_dropped(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b"])  # half of the slots: all that may wait for the tier below
    admitted = rig.loop.submit(rig.chain.admit(2))
    rig.put([b"c"])
    assert not admitted.done()
    rig.gate(opened=True)
    assert admitted.result(5) == 2
    slots = rig.chain.reserve([b"d", b"e"]).slots
    rig.chain.commit(slots, admitted=2)
    rig.drain()
    assert set(rig.lower.chunks) == {b"a", b"b", b"d", b"e"}
    assert rig.chain.stats().counters["dropped_chunks", "memory"] == 1


def test_a_place_that_is_not_used_is_given_back(rig: Rig) -> None:
    assert rig.loop.submit(rig.chain.admit(2)).result(5) == 2
    waiting = rig.loop.submit(rig.chain.admit(1))
    slots = rig.chain.reserve([b"a", b"b"]).slots
    rig.chain.abandon(slots)
    rig.chain.commit([], admitted=2)
    assert waiting.result(5) == 1
    rig.chain.commit([], admitted=1)


def test_a_chunk_invalidated_between_two_tiers_does_not_reach_the_second() -> None:
    loop, pinned = LoopThread(), Slots(4)
    first, second = MemoryTier("first"), MemoryTier("second")
    chain = Chain(pinned, [first, second], loop, load_deadline_s=5.0)
    loop.submit(_call(first.gate.clear)).result(5)
    chain.commit(chain.reserve([b"old"]).slots)
    loop.submit(_until(lambda: bool(first.log))).result(5)
    chain.invalidate()
    loop.submit(_call(first.gate.set)).result(5)
    loop.submit(chain.drain()).result(5)
    assert b"old" not in second.chunks
    loop.submit(chain.stop()).result(5)
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
    chain = Chain(Slots(4), [lower], loop, load_deadline_s=5.0)
    chain.commit(chain.reserve([b"a"]).slots)
    loop.submit(chain.drain()).result(5)
    chain.invalidate()
    loop.submit(_until(lambda: not lower.chunks)).result(5)
    loop.submit(chain.stop()).result(5)
    counters = chain.stats().counters
    assert (counters["invalidated_chunks", "pinned"], counters["invalidated_chunks", "memory"]) == (1, 3)
    loop.close()


def test_a_tier_that_could_not_be_told_of_new_weights_is_never_asked_again() -> None:
    loop, lower = LoopThread(), DeafTier()
    lower.chunks[b"old"] = bytes(SLOT_BYTES)
    chain = Chain(Slots(4), [lower], loop, load_deadline_s=5.0)
    assert chain.lookup([b"old"]) == [True]
    chain.invalidate()
    loop.submit(_call(lambda: None)).result(5)
    chain.commit(chain.reserve([b"new"]).slots)
    loop.submit(chain.drain()).result(5)
    assert chain.lookup([b"old", b"new"]) == [False, True]
    assert b"new" not in lower.chunks
    loop.submit(chain.stop()).result(5)
    chain.check()
    loop.close()


@pytest.mark.parametrize(
    "ask", [lambda chain: chain.acquire([b"old"])[0], lambda chain: chain.promise(b"old")]
)
def test_what_was_found_below_before_an_invalidation_is_not_promoted_after_it(
    ask: Callable[[Chain], Found],
) -> None:
    class Racing(MemoryTier):
        """The weights change while the tier is being asked."""

        def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
            chain.invalidate()
            return [True] * len(keys)

    loop, lower = LoopThread(), Racing()
    chain = Chain(Slots(4), [lower], loop, load_deadline_s=5.0)
    assert ask(chain).presence is Presence.MISS
    loop.submit(chain.stop()).result(5)
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

    def __init__(self, *lower: MemoryTier) -> None:
        self.loop = LoopThread()
        self.chain = Chain(Slots(4), lower, self.loop, load_deadline_s=5.0)

    def store(self, *keys: bytes) -> None:
        self.chain.commit(self.chain.reserve(keys).slots)

    def flush(self) -> None:
        self.loop.submit(self.chain.flush()).result(5)

    def close(self) -> None:
        self.loop.submit(self.chain.stop()).result(5)
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
    assert rig.chain.stats().counters["dropped_chunks", "memory"] == 3
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


def test_a_flush_to_a_tier_that_is_used_no_more_fails() -> None:
    rig = Above(DeafTier())
    rig.chain.invalidate()
    rig.store(b"a")
    with pytest.raises(TierError, match="used no more"):
        rig.flush()
    rig.close()
