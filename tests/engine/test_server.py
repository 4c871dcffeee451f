"""The chain as a scheduler uses it: steps, and invalidations from any thread."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Rig, Slots, rigged

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement import transfers as transfers_module
from kvtier.engine.movement.placement import Found, Presence
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
