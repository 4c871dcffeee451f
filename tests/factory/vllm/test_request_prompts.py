"""A request is one prompt over all its steps: order, what is refused, what fails; no vLLM is involved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from chain_rig import rigged
from placement_rig import Server

from kvtier.engine.movement.placement import Presence


@pytest.fixture
def server() -> Iterator[Server]:
    for rig in rigged(8):
        yield Server(rig)


@pytest.fixture
def roomy() -> Iterator[Server]:
    """Room for a prompt of 64 chunks and half of one of 16."""
    for rig in rigged(72):
        yield Server(rig, lambda key: key[-1:])


def keys_of(prompt: str, count: int, group: int = 0) -> list[bytes]:
    return [b"%s %d %d" % (prompt.encode(), number, group) for number in range(count)]


@pytest.mark.parametrize("step", [64, 16, 4, 1])
@pytest.mark.parametrize("is_told", [True, False])
def test_a_prompt_that_comes_in_over_many_steps_keeps_its_head(
    roomy: Server, step: int, is_told: bool
) -> None:
    first, second = keys_of("a", 64), keys_of("b", 16)
    told = [16 * (number + 1) for number in range(64)]
    roomy.store_in_steps("a", first, step, told if is_told else None)
    roomy.placement.finish("a")
    roomy.store_in_steps("b", second, step, told[:16] if is_told else None)
    roomy.placement.finish("b")
    assert roomy.slots_hit(first) == 56
    assert roomy.slots_hit(second) == 16


def test_requests_whose_steps_alternate_are_never_mixed_up(roomy: Server) -> None:
    prompts = {name: keys_of(name, 32) for name in ("a", "b")}
    for start in range(0, 32, 2):
        for name, keys in prompts.items():
            roomy.store(keys[start : start + 2], name)
            roomy.rig.drain()
    for name in prompts:
        roomy.placement.finish(name)
    roomy.store_in_steps("c", keys_of("c", 24), 4)
    assert roomy.slots_hit(prompts["b"]) == 32, "the younger one"
    assert roomy.slots_hit(prompts["a"]) == 16


def test_groups_are_counted_side_by_side(roomy: Server) -> None:
    groups = [keys_of("a", 32, group) for group in (0, 1)]
    for keys in groups:  # one after the other, as what a sliding window leaves to the end
        roomy.store_in_steps("a", keys, 4)
    roomy.placement.finish("a")
    roomy.store_in_steps("b", keys_of("b", 24), 4)
    assert [roomy.slots_hit(keys) for keys in groups] == [24, 24]


def test_positions_that_are_told_order_what_comes_late(roomy: Server) -> None:
    keys, told = keys_of("a", 64), list(range(64))
    for part in (slice(32, 64), slice(0, 32)):  # the head is stored last
        roomy.store_in_steps("a", keys[part], 8, told[part])
    roomy.placement.finish("a")
    roomy.store_in_steps("b", keys_of("b", 16), 4)
    assert roomy.slots_hit(keys) == 56


def test_a_head_that_a_short_prompt_used_is_the_long_ones_again_at_its_end(roomy: Server) -> None:
    shared, long = keys_of("a", 8), keys_of("a", 64)
    roomy.store_in_steps("long", long[:32], 4)
    roomy.store(shared, "short")
    roomy.placement.finish("short")
    roomy.store_in_steps("long", long[32:], 4)
    roomy.placement.finish("long")
    roomy.store_in_steps("b", keys_of("b", 16), 4)
    assert roomy.slots_hit(long) == 56


def test_a_store_never_evicts_what_it_names(server: Server) -> None:
    prefix = keys_of("p", 4)
    server.store_in_steps("p", prefix, 4)
    server.store_in_steps("o", keys_of("o", 4), 4)
    plan = server.store([*prefix, *keys_of("n", 3)], "c")
    assert plan.keys == keys_of("n", 3)
    assert set(plan.evicted) <= set(keys_of("o", 4))
    assert server.slots_hit(prefix) == 4


def test_a_refused_store_takes_nothing_and_gets_all_of_it_later(server: Server) -> None:
    first, second = keys_of("a", 6), keys_of("b", 7)
    server.store_in_steps("a", first, 6)
    held = [server.placement.lookup("waits", key) for key in first[:2]]
    assert held == [Presence.READY] * 2
    for _ in range(3):
        assert server.placement.prepare_store("b", second) is None
    assert server.slots_hit(first) == 6, "a store that is refused evicts nothing"
    server.placement.finish("waits")
    assert server.store(second, "b").keys == second
    server.placement.finish("b")
    assert server.dropped() == 0


@pytest.mark.parametrize("ends", ["told", "guessed"])
def test_what_a_request_never_got_room_for_is_counted_once(server: Server, ends: str) -> None:
    server.store_in_steps("a", keys_of("a", 8), 8)
    for key in keys_of("a", 8):
        server.placement.lookup("waits", key)
    for _ in range(3):
        assert server.placement.prepare_store("b", keys_of("b", 2)) is None
    assert server.dropped() == 0, "it is offered again"
    for _ in range(2):
        (server.placement.finish if ends == "told" else server.placement.forget)("b")
    assert server.dropped() == 2
    server.placement.finish("waits")
    assert server.pins() == 0


def test_a_prompt_that_never_fits_is_cut_and_told_so_at_once(server: Server) -> None:
    keys = keys_of("a", 12)
    server.store_in_steps("a", keys, 3)
    assert server.slots_hit(keys) == 8
    assert server.dropped() == 4
    assert server.prepared(keys[8:], "a").keys == [], "an empty plan, or it would be offered for ever"
    server.placement.finish("a")


def test_nothing_is_stored_behind_a_chunk_that_failed(server: Server) -> None:
    keys = keys_of("a", 6)
    plan = server.prepared(keys[:3], "a")
    server.marks.failed.add(plan.slots[1])
    server.placement.complete_store(set(plan.keys), success=True)
    server.marks.failed.clear()
    assert server.prepared(keys[3:], "a").keys == []
    assert server.prepared([keys[0]], "a").keys == []
    assert server.store(keys_of("other", 1), "other").keys == keys_of("other", 1)
    server.placement.finish("a")
    assert server.store(keys, "again").keys == [keys[1], *keys[3:]], "another request may store it"


def test_a_lookup_that_led_to_nothing_is_no_use_at_the_end(server: Server) -> None:
    old, young = keys_of("a", 4), keys_of("b", 4)
    server.store_in_steps("a", old, 4)
    server.store_in_steps("b", young, 4)
    server.placement.lookup("aborted", old[0])
    server.placement.finish("aborted")
    server.store_in_steps("c", keys_of("c", 4), 4)
    assert (server.slots_hit(old), server.slots_hit(young)) == (0, 4)


def test_chunks_without_a_place_may_make_room_for_each_other_where_places_are_told(server: Server) -> None:
    for number, key in enumerate(itertools.chain(keys_of("a", 8), keys_of("b", 4))):
        server.store([key], "one for all", [None])
        server.rig.drain()
        assert server.slots_hit([key]) == 1, number
    assert server.dropped() == 0


def test_a_prompt_begins_anew_after_a_reset(server: Server) -> None:
    keys = keys_of("a", 12)
    server.store_in_steps("a", keys, 4)  # it was cut
    server.placement.reset()
    server.rig.drain()
    assert server.store(keys[:4], "a").keys == keys[:4]
    server.placement.finish("a")
    assert server.pins() == 0
