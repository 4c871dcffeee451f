from collections.abc import Iterator

import pytest
from chain_rig import Rig, rigged

from kvtier.engine.events import EVENTS_MAX, ChainEvent, EventLog
from kvtier.tiers.base import RemoveReason


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rigged(2)


def test_a_store_is_told_for_each_tier_once_it_is_there(rig: Rig) -> None:
    rig.put([b"a"])
    rig.drain()
    assert rig.events.take() == [
        ChainEvent("pinned", (b"a",), None),
        ChainEvent("memory", (b"a",), None),
    ]
    assert rig.events.take() == []


def test_an_eviction_says_what_left_and_why(rig: Rig) -> None:
    rig.put([b"a", b"b"])
    rig.drain()
    rig.events.take()
    rig.put([b"c"])
    assert rig.events.take()[0] == ChainEvent("pinned", (b"b",), RemoveReason.EVICTED)


def test_a_promotion_is_a_store_in_the_pinned_tier(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = bytes(64)
    slots, _ = rig.fetch([b"x"]).result(5)
    rig.chain.release(slots)
    assert rig.events.take() == [ChainEvent("pinned", (b"x",), None)]


def test_a_corrupt_chunk_left_its_tier(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = bytes(64)
    rig.lower.broken.add(b"x")
    rig.fetch([b"x"]).result(5)
    assert rig.events.take() == [ChainEvent("memory", (b"x",), RemoveReason.CORRUPT)]


def test_an_invalidation_says_what_left_its_slots(rig: Rig) -> None:
    rig.put([b"a"])
    rig.drain()
    rig.events.take()
    rig.chain.invalidate()
    assert rig.events.take() == [ChainEvent("pinned", (b"a",), RemoveReason.INVALIDATED)]


def test_an_abandoned_store_was_never_there(rig: Rig) -> None:
    rig.chain.abandon(rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots)
    assert rig.events.take() == []


def test_events_that_nobody_takes_are_bounded() -> None:
    events = EventLog()
    for i in range(EVENTS_MAX + 3):
        events.stored("pinned", [b"%d" % i])
    taken = events.take()
    assert len(taken) == EVENTS_MAX
    assert taken[0].keys == (b"3",)
    assert events.dropped_count == 3
