"""The chain as a scheduler uses it: steps, and invalidations from any thread."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Rig, Slots, rigged

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement import cascades as cascades_module
from kvtier.engine.movement import transfers as transfers_module
from kvtier.engine.movement.losses import calling
from kvtier.engine.movement.placement import Found, Presence
from kvtier.engine.movement.rates import KNOWN_FROM_BYTES, GivenPrefill, TierRate
from kvtier.engine.movement.worth import Computing
from kvtier.tiers.errors import NotDurable
from kvtier.tiers.testing import MemoryTier, pattern


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rigged(4)


def test_what_a_step_queued_moves_when_the_step_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers_module, "AFTER_STEP_S", 3600.0)
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.chain.commit_in_step(rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots)
    assert rig.chain.pin(b"x").presence is Presence.MISS
    assert rig.chain.promote(rig.chain.new_prompt(), b"y").presence is Presence.MISS
    found = rig.chain.promote(rig.chain.new_prompt(), b"x")
    assert found.presence is Presence.PENDING
    assert found.slot is not None
    rig.gate(opened=True)  # the loop has been there
    assert rig.lower.log == []
    rig.chain.start_queued()
    rig.drain()
    rig.chain.release([found.slot, *rig.fetch([b"x"]).result(5)[0]])
    assert sorted(rig.lower.log) == [("load", (b"x",)), ("store", (b"a",))]
    assert rig.chain.stats().tiers["pinned"].counters["misses"] == 1, "a pin that misses is no answer yet"


def test_what_a_step_commits_moves_though_no_other_step_follows(rig: Rig) -> None:
    rig.chain.commit_in_step(rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots)
    rig.drain()
    assert rig.lower.log == [("store", (b"a",))]


@pytest.fixture
def stepping(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A chain within a step: nothing of what is stored moves unless somebody asks."""
    monkeypatch.setattr(transfers_module, "AFTER_STEP_S", 3600.0)
    return rig


def stored_in_step(rig: Rig, keys: Sequence[bytes]) -> None:
    slots = rig.chain.reserve(rig.chain.new_prompt(), keys).slots
    assert [slot.key for slot in slots] == list(keys)
    rig.chain.commit_in_step(slots)


def test_what_a_step_stored_is_found_at_once_and_counts_as_owed(stepping: Rig) -> None:
    stored_in_step(stepping, [b"a", b"b"])
    found = [stepping.chain.pin(key) for key in (b"a", b"b")]
    assert [one.presence for one in found] == [Presence.READY] * 2
    stepping.chain.release([one.slot for one in found if one.slot is not None])
    stats = stepping.chain.stats()
    assert stats.pending_chunks == {"memory": 2}
    assert stats.tiers["pinned"].counters["stored_chunks"] == 2
    stepping.chain.check()


def test_a_flush_covers_what_a_step_stored_before_it(stepping: Rig) -> None:
    stored_in_step(stepping, [b"a"])
    stored_in_step(stepping, [b"b"])
    stepping.loop.submit(stepping.chain.mover.flush(calling())).result(5)
    assert [key for call, keys in stepping.lower.log if call == "store" for key in keys] == [b"a", b"b"]
    assert stepping.lower.log[-1] == ("flush", ())


def test_a_flush_tells_of_what_a_step_stored_before_the_end(stepping: Rig) -> None:
    stored_in_step(stepping, [b"a"])
    stepping.loop.submit(stepping.chain.mover.stop()).result(5)
    with pytest.raises(NotDurable) as error:
        stepping.loop.submit(stepping.chain.mover.flush(calling())).result(5)
    assert set(error.value.keys) == {b"a"}


def test_what_a_step_stored_first_goes_down_first_also_where_the_step_names_the_rest_again(
    stepping: Rig,
) -> None:
    prompt = stepping.chain.new_prompt()
    stepping.chain.commit_in_step(stepping.chain.reserve(prompt, [b"a", b"b"]).slots)
    assert stepping.chain.reserve(prompt, [b"b"]).held == [b"b"]
    stepping.chain.touch(prompt, [b"b"])
    stepping.drain()
    assert stepping.lower.log == [("store", (b"a",)), ("store", (b"b",))]
    assert stepping.chain.stats().pinned_slots == 0


@pytest.fixture
def wide() -> Iterator[Rig]:
    yield from rigged(20)


def test_what_a_large_step_stored_is_owed_part_by_part_and_comes_down_in_its_order(
    wide: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascades_module, "NOTED_AT_ONCE", 3)
    keys = [b"%03d" % number for number in range(20)]
    stored_in_step(wide, keys)
    wide.chain.start_queued()
    wide.loop.submit(wide.chain.mover.until(lambda: len(wide.lower.chunks) == len(keys))).result(5)
    assert [key for call, stored in wide.lower.log if call == "store" for key in stored] == keys


@pytest.mark.parametrize("goes", ["removed", "invalidated"])
def test_what_a_step_stored_and_is_gone_again_reaches_no_tier(stepping: Rig, goes: str) -> None:
    stored_in_step(stepping, [b"a"])
    if goes == "removed":
        stepping.loop.submit(stepping.chain.remove([b"a"])).result(5)
    else:
        stepping.chain.invalidate()
    stored_in_step(stepping, [b"b"])
    stepping.drain()
    assert stepping.lower.log == [("store", (b"b",))]
    assert stepping.chain.stats().pinned_slots == 0
    stepping.chain.check()


def test_what_a_step_stored_makes_room_as_far_as_no_tier_may_keep_it(stepping: Rig) -> None:
    stored_in_step(stepping, [b"a", b"b", b"c", b"d"])
    reserved = stepping.chain.reserve(stepping.chain.new_prompt(), [b"x", b"y"])
    assert not reserved.refused
    assert len(reserved.evicted) == 2, "half of the slots may be kept for a tier"
    stepping.chain.abandon(reserved.slots)
    stored_in_step(stepping, [b"e", b"f"])
    stepping.lower.chunks[b"z"] = pattern(b"z", SLOT_BYTES)
    found = stepping.chain.promote(stepping.chain.new_prompt(), b"z")
    assert found.presence is Presence.PENDING
    assert found.slot is not None
    stepping.chain.release([found.slot])


def test_a_fetch_starts_what_a_step_has_queued(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    found = rig.chain.promote(rig.chain.new_prompt(), b"x")
    assert found.slot is not None
    slots, failed = rig.fetch([b"x"]).result(5)
    assert not failed
    rig.chain.release([found.slot, *slots])


def test_nothing_stored_before_an_invalidation_is_found_after_it(rig: Rig) -> None:
    rig.put([b"a"])
    rig.drain()
    in_flight = rig.chain.reserve(rig.chain.new_prompt(), [b"b"]).slots
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


@pytest.mark.parametrize(
    "ask",
    [
        lambda chain: chain.acquire(chain.new_prompt(), [b"old"])[0],
        lambda chain: chain.promote(chain.new_prompt(), b"old"),
    ],
)
def test_what_was_found_below_before_an_invalidation_is_not_promoted_after_it(
    ask: Callable[[BothFaces], Found],
) -> None:
    class Racing(MemoryTier):
        """The weights change while the tier is being asked."""

        def lookup(self, keys: Sequence[bytes]) -> Sequence[bool]:
            chain.invalidate()
            return [True] * len(keys)

    loop, lower = LoopThread(), Racing()
    chain = BothFaces(Slots(4), [lower], loop, load_deadlines_s={})
    assert ask(chain).presence is Presence.MISS
    loop.submit(chain.mover.stop()).result(5)
    loop.close()


class FastServer:
    """A server that computes a chunk a second, over a tier that loads as many as the test says."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.chain = rig, rig.chain
        self.chain._advisor.computing = Computing(16, GivenPrefill(16.0))
        self.rate = self.chain._lower.rates["memory"]

    def loads_take(self, chunk_s: float) -> None:
        """Let the tier have been measured just now."""
        chunks = 2 * KNOWN_FROM_BYTES // SLOT_BYTES
        self.rate.began(time.monotonic() - chunk_s * chunks)
        self.rate.ended(time.monotonic(), chunks * SLOT_BYTES)

    def declined(self) -> int:
        return self.chain.stats().tiers["memory"].counters["declined_chunks"]


@pytest.fixture
def fast(rig: Rig) -> FastServer:
    for key in (b"x", b"y", b"z"):
        rig.lower.chunks[key] = pattern(key, SLOT_BYTES)
    return FastServer(rig)


def test_what_is_computed_sooner_than_it_is_loaded_stays_below(fast: FastServer) -> None:
    fast.loads_take(2.0)
    prompt = fast.chain.new_prompt()
    answers = [fast.chain.promote(prompt, key).presence for key in (b"x", b"y", b"x", b"absent")]
    assert answers == [Presence.MISS] * 4
    assert fast.declined() == 2, "each once"
    stats = fast.chain.stats().tiers
    assert stats["pinned"].counters["misses"] == 1, "what no tier has"
    assert stats["memory"].gauges["load_bytes_per_s"] == pytest.approx(SLOT_BYTES / 2, abs=1)
    fast.rig.drain()
    assert fast.rig.lower.log == []


def test_what_is_in_a_slot_is_a_hit_after_a_no(fast: FastServer) -> None:
    fast.loads_take(2.0)
    prompt = fast.chain.new_prompt()
    assert fast.chain.promote(prompt, b"x").presence is Presence.MISS
    fast.rig.put([b"y"])
    found = fast.chain.pin(b"y")
    assert found.presence is Presence.READY
    assert found.slot is not None
    fast.chain.release([found.slot])


def test_a_yes_holds_for_the_run_whatever_comes_to_the_queue(fast: FastServer) -> None:
    fast.loads_take(0.4)
    prompt = fast.chain.new_prompt()
    first = fast.chain.promote(prompt, b"x", run_chunks=3)
    other = fast.chain.promote(fast.chain.new_prompt(), b"y", run_chunks=1)
    assert fast.rate.queued_bytes == 2 * SLOT_BYTES
    declined = fast.chain.promote(fast.chain.new_prompt(), b"z", run_chunks=1)
    assert declined.presence is Presence.MISS, "two wait before it"
    last = fast.chain.promote(prompt, b"z", run_chunks=1)
    assert [one.presence for one in (first, other, last)] == [Presence.PENDING] * 3
    fast.chain.start_queued()
    slots, failed = fast.rig.fetch([b"x", b"y", b"z"]).result(5)
    assert not failed
    fast.chain.release([*slots, *(one.slot for one in (first, other, last) if one.slot is not None)])
    assert fast.rate.queued_bytes == 0


def test_what_is_computed_is_waited_for_as_what_is_loaded_is(fast: FastServer) -> None:
    fast.loads_take(0.9)
    found = [fast.chain.promote(fast.chain.new_prompt(), key, run_chunks=1) for key in (b"x", b"y", b"z")]
    expected = [Presence.PENDING, Presence.MISS, Presence.PENDING]
    assert [one.presence for one in found] == expected, "loaded, computed meanwhile, and the next one loaded"
    fast.chain.start_queued()
    slots, _ = fast.rig.fetch([b"x", b"z"]).result(5)
    fast.chain.release([*slots, *(one.slot for one in found if one.slot is not None)])


def test_promotions_that_fail_are_queued_no_more(fast: FastServer) -> None:
    fast.rig.lower.broken.add(b"x")
    found = fast.chain.promote(fast.chain.new_prompt(), b"x")
    fast.chain.start_queued()
    slots, failed = fast.rig.fetch([b"x", b"y"]).result(5)
    assert set(failed) == {b"x"}
    assert fast.rate.queued_bytes == 0
    assert found.slot is not None
    fast.chain.release([found.slot, *slots])


class WatchedRate(TierRate):
    """Says when a load is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = threading.Event()

    def ended(self, now_s: float, moved_bytes: int) -> None:
        super().ended(now_s, moved_bytes)
        self.counted.set()


def test_a_load_that_hangs_makes_the_tier_neither_slow_nor_busy_for_ever(fast: FastServer) -> None:
    """Else nothing would ever be loaded again from a tier that answers every other call."""
    rig, rate = fast.rig, WatchedRate()
    fast.chain._lower.rates["memory"] = rate
    fast.chain._placement.load_deadlines_s = {"memory": 0.01}
    rig.gate(opened=False)
    found = fast.chain.promote(fast.chain.new_prompt(), b"x")
    fast.chain.start_queued()
    assert rate.counted.wait(5)
    assert rate.queued_bytes == 0
    later_s = time.monotonic() + 1000
    rate.began(later_s)
    rate.ended(later_s + 1, 2 * KNOWN_FROM_BYTES)
    known = rate.bytes_per_s
    assert known is not None
    assert known > KNOWN_FROM_BYTES, "the time between the two is not the tier's"
    rig.gate(opened=True)
    slots, _ = rig.fetch([b"x"]).result(5)
    assert (rate.queued_bytes, rate.bytes_per_s) == (0, known), "it was counted already"
    assert found.slot is not None
    fast.chain.release([found.slot, *slots])


def test_what_another_has_promoted_meanwhile_is_queued_once_also_where_it_is_late(
    fast: FastServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, look = fast.rig, fast.rig.lower.lookup
    others: list[Found] = []

    def another_promotes_it_first(keys: Sequence[bytes]) -> Sequence[bool | None]:
        monkeypatch.setattr(rig.lower, "lookup", look)
        others.append(fast.chain.promote(fast.chain.new_prompt(), b"x"))
        rig.clock.now_s += 10
        return look(keys)

    monkeypatch.setattr(rig.lower, "lookup", another_promotes_it_first)
    assert fast.chain.promote(fast.chain.new_prompt(), b"x").presence is Presence.LATE
    assert fast.rate.queued_bytes == SLOT_BYTES
    fast.chain.start_queued()
    slots, _ = rig.fetch([b"x"]).result(5)
    assert fast.rate.queued_bytes == 0
    fast.chain.release([*slots, *(one.slot for one in others if one.slot is not None)])
