"""The scheduler's bookkeeping over a chain with a memory tier below; no vLLM is involved."""

from collections.abc import Iterator, Mapping

import pytest
from chain_rig import SLOT_BYTES, rigged
from placement_rig import Server, Slow

from kvtier.engine.movement.placement import Presence
from kvtier.factory.vllm.scheduling.placement import ServerPlacement
from kvtier.tiers.base import ChunkKey
from kvtier.tiers.testing import pattern


@pytest.fixture
def server() -> Iterator[Server]:
    for rig in rigged(4):
        yield Server(rig)


def test_a_hit_is_held_until_it_is_loaded(server: Server) -> None:
    server.store([b"a"])
    assert server.placement.lookup("r1", b"a") is Presence.READY
    assert server.placement.prepare_store("w", [b"b", b"c", b"d", b"e"]) is None, "it wants every slot"
    server.store([b"b", b"c", b"d"])
    server.rig.drain()
    (slot,) = server.placement.prepare_load("r1", [b"a"])
    assert bytes(server.rig.pinned.memory[slot]) == pattern(b"a", SLOT_BYTES)
    server.placement.complete_load("r1", {b"a"})
    assert server.pins() == 0


def test_a_hit_below_is_pending_at_once_and_ready_later(server: Server) -> None:
    server.only_below([b"x", b"y"])
    assert server.placement.lookup("r1", b"x") is Presence.PENDING
    assert server.placement.lookup("r1", b"y") is Presence.PENDING
    server.settle([b"x", b"y"])
    assert server.placement.lookup("r1", b"x") is Presence.READY
    slots = server.placement.prepare_load("r1", [b"x", b"y"])
    assert server.placement.source("r1", b"x") == "memory"
    assert server.placement.source("r1", b"z") == ""
    assert [bytes(server.rig.pinned.memory[slot]) for slot in slots] == [
        pattern(key, SLOT_BYTES) for key in (b"x", b"y")
    ]
    server.placement.complete_load("r1", {b"y", b"x"})
    assert server.rig.chain.stats().tiers["memory"].counters["hits"] == 2
    assert server.pins() == 0


def test_a_request_that_ends_lets_go_of_what_it_held(server: Server) -> None:
    server.store([b"a"])
    server.only_below([b"x"])
    server.placement.lookup("r1", b"a")
    server.placement.lookup("r1", b"x")
    server.placement.finish("r1")
    server.settle([b"x"])
    assert server.pins() == 0


def test_a_chunk_that_failed_is_a_miss_for_that_request_for_good(server: Server) -> None:
    server.only_below([b"x"])
    server.rig.lower.broken.add(b"x")
    assert server.placement.lookup("r1", b"x") is Presence.PENDING
    server.settle([b"x"])
    server.only_below([b"x"])  # the tier goes on claiming that it has it, as a disk with read errors does
    assert server.placement.lookup("r1", b"x") is Presence.MISS
    assert server.placement.lookup("r1", b"x") is Presence.MISS
    assert len(server.rig.lower.log) == 1
    server.placement.finish("r1")


def test_a_late_chunk_is_a_miss_for_that_request(server: Server) -> None:
    server.only_below([b"x"])
    server.rig.gate(opened=False)
    assert server.placement.lookup("r1", b"x") is Presence.PENDING
    server.rig.clock.now_s = 6.0
    assert server.placement.lookup("r1", b"x") is Presence.LATE
    assert server.rig.chain.stats().tiers["memory"].counters["late_loads"] == 1
    server.rig.gate(opened=True)
    server.settle([b"x"])
    assert server.placement.lookup("r1", b"x") is Presence.MISS
    assert server.placement.lookup("r2", b"x") is Presence.READY
    server.placement.finish("r1")
    server.placement.finish("r2")
    assert server.pins() == 0


def test_requests_cannot_take_each_others_promotions_in_turn(server: Server) -> None:
    first, second = [b"a1", b"a2", b"a3"], [b"b1", b"b2", b"b3"]
    server.only_below(first + second)
    assert [server.placement.lookup("r1", key) for key in first] == [Presence.PENDING] * 3
    assert [server.placement.lookup("r2", key) for key in second][1:] == [Presence.FULL] * 2
    server.settle(first)
    assert [server.placement.lookup("r1", key) for key in first] == [Presence.READY] * 3
    server.placement.prepare_load("r1", first)
    server.placement.complete_load("r1", set(first))
    server.placement.finish("r2")


def test_chunks_go_down_in_the_order_of_the_request_though_completion_has_none(server: Server) -> None:
    plan = server.prepared([b"1", b"2"])
    server.rig.gate(opened=False)
    server.placement.complete_store({b"2", b"1"}, success=True)
    server.rig.gate(opened=True)
    server.rig.drain()
    assert plan.keys == [b"1", b"2"]
    assert [key for _, keys in server.rig.lower.log for key in keys] == [b"1", b"2"]


@pytest.mark.parametrize("told", [True, False])
def test_a_failed_store_is_never_readable(server: Server, told: bool) -> None:
    plan = server.prepared([b"a", b"b"])
    if not told:
        server.marks.failed.add(plan.slots[0])
    server.placement.complete_store({b"a", b"b"}, success=not told)
    assert server.rig.chain.lookup([b"a"]) == [False]
    assert server.rig.chain.lookup([b"b"]) == [not told]
    server.rig.drain()
    assert b"a" not in server.rig.lower.chunks


def test_stores_settle_when_the_workers_have_ended_them(server: Server) -> None:
    server.placement.prepare_store("w", [b"a"])
    server.marks.ended = False
    server.placement.complete_ended_stores()
    assert server.placement.lookup("r1", b"a") is Presence.PENDING
    server.marks.ended = True
    server.placement.complete_ended_stores()
    assert server.placement.lookup("r1", b"a") is Presence.READY
    server.placement.finish("r1")
    assert server.pins() == 0


def test_loads_of_one_request_may_be_told_apart_by_names_of_their_own(server: Server) -> None:
    server.store([b"a"])
    for load in ("first", "second"):
        assert server.placement.lookup("r1", b"a") is Presence.READY
        server.placement.prepare_load("r1", [b"a"], load=load)
    server.placement.complete_load("second", [b"a"])
    server.placement.complete_load("first", [b"a"])
    assert server.pins() == 0


def test_a_chunk_that_has_a_slot_is_not_stored_again(server: Server) -> None:
    server.store([b"a"])
    assert server.prepared([b"a"]).keys == []


def test_a_store_without_room_keeps_the_head_and_counts_the_rest(server: Server) -> None:
    plan = server.prepared([b"%d" % i for i in range(6)])
    assert plan.keys == [b"0", b"1", b"2", b"3"]
    assert server.rig.chain.stats().tiers["pinned"].counters["dropped_chunks"] == 2
    server.placement.complete_store(plan.keys, success=True)


def test_a_reset_serves_nothing_old_and_waits_for_the_workers_before_it_reuses_slots(server: Server) -> None:
    server.store([b"a", b"b"])
    server.rig.drain()
    server.placement.lookup("r1", b"a")
    server.placement.prepare_load("r1", [b"a"])
    server.placement.prepare_store("w", [b"c"])
    server.placement.lookup("r2", b"b")
    server.marks.ended = False
    server.placement.reset()
    assert [server.placement.lookup("r3", key) for key in (b"a", b"b", b"c")] == [Presence.MISS] * 3
    assert server.placement.orphaned_count == 2
    server.placement.sweep()
    assert server.placement.prepare_store("w", [b"%d" % i for i in range(4)]) is None, "two slots are in use"
    plan = server.prepared([b"%d" % i for i in range(2)])
    assert len(plan.slots) == 2
    server.placement.complete_store(plan.keys, success=True)
    server.marks.ended = True
    server.placement.sweep()
    assert server.placement.orphaned_count == 0
    assert server.pins() == 0


def test_a_reset_that_keeps_serves_what_was_stored_but_never_a_store_that_was_cut_off(server: Server) -> None:
    server.placement = ServerPlacement(server.rig.chain, server.marks, server.progress, keeps_on_reset=True)
    server.store([b"a"])
    server.placement.prepare_store("w", [b"c"])
    server.placement.reset()
    assert server.placement.lookup("r1", b"a") is Presence.READY
    assert server.placement.lookup("r1", b"c") is Presence.MISS
    server.placement.finish("r1")
    server.placement.sweep()
    assert server.placement.orphaned_count == 0
    assert server.pins() == 0


def test_a_request_may_leave_out_the_tiers_below(server: Server) -> None:
    server.store([b"a"])
    server.only_below([b"b"])
    assert server.placement.lookup("r1", b"a", ()) is Presence.READY
    assert server.placement.lookup("r1", b"b", ()) is Presence.MISS
    assert server.placement.lookup("r1", b"b", ("another",)) is Presence.MISS
    assert server.rig.chain.stats().tiers["pinned"].counters["misses"] == 2
    assert server.placement.lookup("r1", b"b", ("memory",)) is Presence.PENDING
    server.placement.finish("r1")
    assert server.pins() == 0


def test_the_tier_below_is_told_what_a_load_takes_from_slots_and_not_what_it_gave_itself(
    server: Server,
) -> None:
    server.store([b"a", b"b"])
    server.only_below([b"x"])
    for key in (b"a", b"b", b"x"):
        server.placement.lookup("r1", key)
    server.settle([b"x"])
    server.placement.finish("r1")
    told = server.rig.lower.told
    told.clear()  # `settle` has fetched, which is a use
    for key in (b"a", b"b"):
        server.placement.lookup("r2", key)
    assert told == [], "a lookup that leads to nothing is no use"
    server.placement.prepare_load("r2", [b"a"])
    assert told == [b"a"]
    server.placement.complete_load("r2", {b"a"})


def test_the_tier_below_is_told_what_a_request_would_store_again(server: Server) -> None:
    server.store([b"a"])
    server.store([b"a", b"b"])
    assert server.rig.lower.told == [b"a"], "it was used by the request, be it from the device's own cache"


def test_what_a_slow_tier_has_is_a_miss_however_often_it_is_asked_for(server: Server) -> None:
    server.store([b"a"])
    server.only_below([b"x", b"y"])
    slow = Slow(server, chunk_s=2.0)
    expected = [Presence.READY, Presence.MISS, Presence.MISS]
    assert slow.answers("r1", [b"a", b"x", b"y"]) == expected
    server.placement.scheduled()
    assert slow.answers("r1", [b"a", b"x", b"y"]) == expected
    assert slow.declined() == 2, "each once"
    server.placement.prepare_load("r1", [b"a"])
    server.placement.complete_load("r1", {b"a"})
    server.store([b"x", b"y"], "r1")
    assert slow.answers("r1", [b"a", b"x", b"y"]) == [Presence.READY] * 3, "asked again after a preemption"
    server.placement.finish("r1")
    assert server.pins() == 0
    assert "load" not in [call for call, _ in server.rig.lower.log]


def test_what_others_have_queued_counts_against_a_run_by_its_length(server: Server) -> None:
    server.only_below([b"x", b"y", b"z"])
    slow = Slow(server, chunk_s=0.4)
    assert slow.answers("r1", [b"x", b"y"]) == [Presence.PENDING] * 2
    assert slow.answers("r2", [b"z"]) == [Presence.MISS], "two wait before it"
    answers = slow.answers("r3", [b"z", b"absent", b"missing"])
    assert answers[0] is Presence.PENDING, "so long a prompt is worth it"
    server.settle([b"x", b"y", b"z"])
    for request in ("r1", "r2", "r3"):
        server.placement.finish(request)
    assert slow.rate.queued_bytes == 0


def test_a_request_that_wants_no_tier_below_declines_nothing(server: Server) -> None:
    server.only_below([b"x"])
    slow = Slow(server, chunk_s=2.0)
    assert slow.answers("r1", [b"x"], ()) == [Presence.MISS]
    assert slow.answers("r2", [b"x"], ("memory",)) == [Presence.MISS]
    assert slow.declined() == 1


def test_who_listens_hears_of_each_prompt_that_has_run_when_it_ends() -> None:
    heard: list[Mapping[ChunkKey, int]] = []
    for rig in rigged(4):
        server = Server(rig, ended=heard.append)
        server.store([b"a", b"b"], "first")
        assert server.placement.lookup("looked only", b"a") is Presence.READY
        server.placement.finish("looked only")
        assert heard == []
        server.placement.finish("first")
        server.placement.forget("first")
        assert heard == [{b"a": 0, b"b": 1}]
