"""The chain over a memory tier: what is found, what moves, and what a slot is kept from."""

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from chain_rig import SLOT_BYTES, Rig, rigged

from kvtier.engine.chain import with_counts
from kvtier.engine.movement.placement import Presence
from kvtier.tiers.base import Failure, TierStats
from kvtier.tiers.testing import pattern


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
    (found,) = rig.chain.acquire(rig.chain.new_prompt(), [b"x"])
    assert found.presence is Presence.PENDING
    assert found.source == "memory"
    assert found.slot is not None
    slots, _ = rig.fetch([b"x"]).result(5)  # nobody asked for it but acquire
    assert rig.lower.log == [("load", (b"x",))]
    assert rig.chain.state_of(found.slot) is Presence.READY
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
    assert rig.chain.acquire(rig.chain.new_prompt(), [b"x"])[0].presence is Presence.MISS
    assert rig.pinned.table.free_count == 4


def test_a_promotion_past_its_deadline_is_late_and_keeps_its_slot_until_it_returns(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.gate(opened=False)
    (found,) = rig.chain.acquire(rig.chain.new_prompt(), [b"x"])
    assert found.slot is not None
    rig.clock.now_s = 5.1
    assert rig.chain.state_of(found.slot) is Presence.LATE
    assert rig.chain.acquire(rig.chain.new_prompt(), [b"x"])[0].presence is Presence.LATE
    assert rig.chain.stats().tiers["memory"].counters["late_loads"] == 1
    rig.chain.release([found.slot])
    assert rig.pinned.table.free_count == 3
    rig.gate(opened=True)
    slots, _ = rig.fetch([b"x"]).result(5)
    assert slots == [found.slot]
    rig.chain.release(slots)


def test_a_wanted_chunk_without_a_slot_is_counted_as_full(rig: Rig) -> None:
    rig.put([b"a", b"b", b"c", b"d"])
    rig.drain()
    held = [
        found.slot
        for found in rig.chain.acquire(rig.chain.new_prompt(), [b"a", b"b", b"c", b"d"])
        if found.slot
    ]
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    assert rig.chain.acquire(rig.chain.new_prompt(), [b"x"])[0].presence is Presence.FULL
    assert rig.chain.stats().tiers["pinned"].counters["slotless"] == 1
    rig.chain.release(held)
    (found,) = rig.chain.acquire(rig.chain.new_prompt(), [b"x"])
    assert found.slot is not None
    rig.chain.release([found.slot])


def test_what_waits_for_a_slow_disk_never_takes_more_than_half_of_the_slots(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b", b"c", b"d"])
    stats = rig.chain.stats()
    assert (stats.pending_chunks, stats.pinned_slots) == ({"memory": 4}, 2)
    assert stats.tiers["memory"].counters["dropped_chunks"] == 0
    assert len(rig.put([b"e", b"f"])) == 2, "in the slots that are not kept for the disk"
    assert rig.chain.stats().tiers["memory"].counters["dropped_chunks"] == 2
    rig.gate(opened=True)
    rig.drain()
    assert set(rig.lower.chunks) == {b"a", b"b", b"e", b"f"}


def test_counters_are_told_by_tier_and_all_numbers_are_json(rig: Rig) -> None:
    rig.put([b"a"])
    rig.drain()
    numbers = json.loads(json.dumps(rig.chain.stats().as_dict()))
    assert list(numbers) == ["tiers", "pending_chunks", "pinned_slots"]
    assert list(numbers["tiers"]) == ["pinned", "memory"]
    assert numbers["tiers"]["memory"]["counters"]["stored_chunks"] == 1
    assert numbers["tiers"]["memory"]["counters"]["hits"] == 0
    assert numbers["pending_chunks"] == {"memory": 0}


def test_the_chain_counts_a_name_alone_from_the_start() -> None:
    own = {"nvme": TierStats(1, 2, 3, {"hits": 9, "io_errors": 4})}
    assert with_counts(own, {})["nvme"].counters["hits"] == 0
    counters = with_counts(own, {("hits", "nvme"): 5, ("invalidated_chunks", "nvme"): 1})["nvme"].counters
    assert (counters["hits"], counters["io_errors"], counters["invalidated_chunks"]) == (5, 4, 1)


def test_an_abandoned_store_leaves_nothing(rig: Rig) -> None:
    slots = rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots
    rig.chain.abandon(slots)
    assert rig.chain.lookup([b"a"]) == [False]
    assert rig.pinned.table.free_count == 4


def test_a_busy_slot_is_named_and_can_be_waited_for(rig: Rig) -> None:
    slots = rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots
    again = rig.chain.reserve(rig.chain.new_prompt(), [b"a", b"b"])
    assert again.busy == [b"a"]
    assert [slot.key for slot in again.slots] == [b"b"]
    waiting = rig.loop.submit(rig.chain.wait_filled([b"a"]))
    assert not waiting.done()
    rig.chain.commit(slots)
    waiting.result(5)
    rig.chain.commit(again.slots)


def test_a_cancelled_fetch_holds_nothing(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.gate(opened=False)

    async def cancelled() -> None:
        task = asyncio.ensure_future(rig.chain.fetch(rig.chain.new_prompt(), [b"x"]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    rig.loop.submit(cancelled()).result(5)
    rig.gate(opened=True)
    slots, _ = rig.fetch([b"x"]).result(5)
    rig.chain.release(slots)
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
