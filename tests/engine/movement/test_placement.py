"""What a store may take: no gaps, and nothing that it names or that is its prompt's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Slots

from kvtier.engine.library import LibraryChain
from kvtier.engine.loop import LoopThread
from kvtier.engine.movement.losses import calling
from kvtier.engine.movement.placement import Reservation
from kvtier.engine.movement.prompts import Prompt
from kvtier.tiers.pinned.eviction import POLICIES
from kvtier.tiers.pinned.slots import SlotTable
from kvtier.tiers.testing import MemoryTier, pattern

WAIT_S = 10.0


def named(letter: str, count: int, start: int = 0) -> list[bytes]:
    return [f"{letter}{number:03}".encode() for number in range(start, start + count)]


class Server:
    """A server's chain of slots alone."""

    def __init__(self, slots_count: int, policy: str) -> None:
        self.loop, self.slots = LoopThread(), Slots(slots_count)
        self.slots.table = SlotTable(slots_count, POLICIES[policy](slots_count))
        self.chain = BothFaces(self.slots, [], self.loop, load_deadlines_s={})

    def store(self, prompt: Prompt, keys: Sequence[bytes]) -> Reservation:
        reserved = self.chain.reserve(prompt, keys)
        self.chain.commit(reserved.slots)
        self.chain.check()
        return reserved

    def found(self, keys: Sequence[bytes]) -> list[bytes]:
        return [key for key, hit in zip(keys, self.chain.lookup(keys), strict=True) if hit]


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loops() -> Iterator[list[LoopThread]]:
    loops: list[LoopThread] = []
    yield loops
    for loop in loops:
        loop.close()


def serving(loops: list[LoopThread], slots_count: int, policy: str) -> Server:
    server = Server(slots_count, policy)
    loops.append(server.loop)
    return server


@pytest.mark.parametrize("step", [64, 16, 4, 1])
def test_the_head_of_a_prompt_outlives_its_tail_in_whatever_steps_it_came(
    loops: list[LoopThread], policy: str, step: int
) -> None:
    server = serving(loops, 72, policy)
    first, second = named("a", 64), named("b", 16)
    for keys in (first, second):
        prompt = server.chain.new_prompt()
        for start in range(0, len(keys), step):
            server.store(prompt, keys[start : start + step])
    found = server.found(first)
    assert found == first[: len(found)]
    assert len(found) >= 56


def test_a_store_evicts_nothing_that_it_names(loops: list[LoopThread], policy: str) -> None:
    server = serving(loops, 8, policy)
    prefix, others = named("p", 4), named("o", 4)
    for keys in (prefix, others):
        server.store(server.chain.new_prompt(), keys)
    new = named("n", 3)
    reserved = server.store(server.chain.new_prompt(), [*prefix, *new])
    assert set(reserved.evicted) <= set(others)
    assert server.found([*prefix, *new]) == [*prefix, *new]


def test_a_store_that_does_not_fit_now_changes_nothing_and_is_whole_later(
    loops: list[LoopThread], policy: str
) -> None:
    server = serving(loops, 8, policy)
    others = named("o", 4)
    server.store(server.chain.new_prompt(), others)
    held = [found.slot for found in server.chain.acquire(server.chain.new_prompt(), others) if found.slot]
    prompt, keys = server.chain.new_prompt(), named("n", 6)
    for _ in range(3):
        assert server.store(prompt, keys).refused
        assert (prompt.refused_chunks, server.found(others), server.found(keys)) == (6, others, [])
    server.chain.release(held)
    reserved = server.store(prompt, keys)
    assert not reserved.refused
    assert server.found(keys) == keys
    assert prompt.refused_chunks == 0


@pytest.mark.parametrize("step", [1, 3, 20])
def test_a_prompt_larger_than_the_arena_keeps_its_head_without_a_gap(
    loops: list[LoopThread], policy: str, step: int
) -> None:
    server = serving(loops, 8, policy)
    prompt, keys = server.chain.new_prompt(), named("n", 20)
    left: list[bytes] = []
    for start in range(0, len(keys), step):
        reserved = server.store(prompt, keys[start : start + step])
        assert not reserved.refused, "it can never fit"
        assert not reserved.evicted
        left += reserved.left
    assert server.found(keys) == keys[:8]
    assert left == keys[8:]


def test_nothing_behind_a_cut_is_stored_though_there_is_room_again(
    loops: list[LoopThread], policy: str
) -> None:
    server = serving(loops, 8, policy)
    prompt = server.chain.new_prompt()
    server.store(prompt, named("n", 12))
    assert prompt.ends_at == 8
    server.loop.submit(server.chain.remove(named("n", 4))).result(WAIT_S)
    assert server.store(prompt, named("n", 4, 12)).slots == []
    assert server.store(prompt, named("n", 4)).left == []
    assert server.found(named("n", 16)) == named("n", 8)


def test_a_cut_is_by_position_and_not_by_the_order_of_arrival(loops: list[LoopThread], policy: str) -> None:
    server = serving(loops, 4, policy)
    prompt, keys = server.chain.new_prompt(), named("n", 6)
    prompt.place(keys, told=range(6))
    server.store(prompt, keys[::-1])
    assert server.found(keys) == keys[:4]


def test_chunks_of_several_unrelated_prompts_make_room_for_each_other(
    loops: list[LoopThread], policy: str
) -> None:
    server = serving(loops, 4, policy)
    shared = server.chain.new_prompt()
    shared.is_spared = False
    server.store(shared, named("a", 4))
    reserved = server.store(shared, named("b", 3))
    assert len(reserved.slots) == 3
    assert server.found(named("b", 3)) == named("b", 3)


def test_a_job_of_the_library_larger_than_the_arena_keeps_its_head_and_reaches_the_drive_whole(
    loops: list[LoopThread], policy: str
) -> None:
    loop, lower, device, slots = LoopThread(), MemoryTier(), MemoryTier("gpu"), Slots(16)
    loops.append(loop)
    slots.table = SlotTable(16, POLICIES[policy](16))
    chain = LibraryChain(slots, [lower], loop, load_deadlines_s={})
    keys = named("n", 100)
    device.chunks = {key: pattern(key, SLOT_BYTES) for key in keys}
    outcome = loop.submit(chain.store(device, keys, calling())).result(WAIT_S)
    loop.submit(chain.mover.flush(calling())).result(WAIT_S)
    assert outcome.succeeded == tuple(keys)
    assert lower.chunks == device.chunks
    assert chain.contains(keys[:8]) == ["pinned"] * 8
    others = named("o", 8)
    device.chunks.update({key: pattern(key, SLOT_BYTES) for key in others})
    assert loop.submit(chain.store(device, others, calling())).result(WAIT_S).succeeded == tuple(others)
    loop.submit(chain.mover.flush(calling())).result(WAIT_S)
    assert chain.contains(keys[:8]) == ["pinned"] * 8, "its tail leaves first"
    loop.submit(chain.mover.stop()).result(WAIT_S)
    chain.check()


def test_the_head_of_a_job_of_the_library_outlives_its_tail(loops: list[LoopThread], policy: str) -> None:
    loop, device, slots = LoopThread(), MemoryTier("gpu"), Slots(72)
    loops.append(loop)
    slots.table = SlotTable(72, POLICIES[policy](72))
    chain = LibraryChain(slots, [], loop, load_deadlines_s={})
    first, second = named("a", 64), named("b", 16)
    device.chunks = {key: pattern(key, SLOT_BYTES) for key in (*first, *second)}
    for keys in (first, second):
        assert not loop.submit(chain.store(device, keys, calling())).result(WAIT_S).failed
    assert chain.lookup(first) == [True] * 56 + [False] * 8
    chain.check()
