"""Prompts that come in over many steps, one after the other and side by side: what of a prefix still hits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from eviction_rig import chunks

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES
from kvtier.tiers.pinned.slots import SlotTable

STEPS = [1, 4, 16, 64]

every_policy = pytest.mark.parametrize("policy", sorted(POLICIES))


def table(slots_count: int, policy: str) -> SlotTable:
    return SlotTable(slots_count, POLICIES[policy](slots_count))


def steps(keys: list[ChunkKey], step_chunks: int) -> Iterator[tuple[list[ChunkKey], list[int]]]:
    for start in range(0, len(keys), step_chunks):
        part = keys[start : start + step_chunks]
        yield part, list(range(start, start + len(part)))


def store(slots: SlotTable, prompt: int, keys: list[ChunkKey], positions: list[int]) -> list[ChunkKey]:
    taken, evicted = slots.reserve(prompt, keys, positions)
    slots.commit(taken)
    slots.check()
    return evicted


def leading(slots: SlotTable, keys: list[ChunkKey]) -> int:
    """How many chunks from the head on can be read."""
    return sum(1 for _ in itertools.takewhile(slots.is_ready, keys))


@every_policy
@pytest.mark.parametrize("step_chunks", STEPS)
def test_a_prefix_loses_its_tail_only_as_far_as_room_is_needed(policy: str, step_chunks: int) -> None:
    slots, prefix = table(72, policy), chunks("prefix", 64)
    for prompt, keys in enumerate((prefix, chunks("other", 16))):
        for part, positions in steps(keys, step_chunks):
            store(slots, prompt, part, positions)
    assert leading(slots, prefix) == 56


@every_policy
@pytest.mark.parametrize("step_chunks", STEPS)
def test_prompts_that_come_in_side_by_side_keep_their_heads(policy: str, step_chunks: int) -> None:
    slots = table(136, policy)
    first, second = chunks("first", 64), chunks("second", 64)
    for turns in zip(steps(first, step_chunks), steps(second, step_chunks), strict=True):
        for prompt, (part, positions) in enumerate(turns):
            store(slots, prompt, part, positions)
    for part, positions in steps(chunks("other", 16), step_chunks):
        store(slots, 2, part, positions)
    assert leading(slots, first) + leading(slots, second) == 120, "no chunk lies behind a gap"
    assert min(leading(slots, first), leading(slots, second)) >= 56


@every_policy
def test_a_store_never_evicts_what_its_prompt_stored_or_used_last(policy: str) -> None:
    """Random prompts that share prefixes, in random steps and in turns."""
    rng = random.Random(11)
    lines = POLICIES[policy](40)
    slots, prompts = SlotTable(40, lines), itertools.count()
    stems = [chunks(f"stem{number}-", 12) for number in range(4)]
    for _ in range(40):
        running = {}
        for _ in range(3):
            prompt = next(prompts)
            keys = [*rng.choice(stems)[: rng.randint(0, 12)], *chunks(f"{prompt}-", 10)]
            running[prompt] = keys, steps(keys, rng.choice([1, 3, 8]))
        while running:
            prompt = rng.choice(list(running))
            keys, parts = running[prompt]
            part, positions = next(parts, ([], []))
            if not part:
                del running[prompt]
                continue
            held = {key: at for key, at in zip(part, positions, strict=True) if slots.is_ready(key)}
            slots.touch(prompt, list(held), list(held.values()))
            new = {key: at for key, at in zip(part, positions, strict=True) if key not in held}
            assert slots.room(prompt, len(new)) == len(new)
            own = set(lines.line(prompt))
            assert own >= set(held)
            assert not own.intersection(store(slots, prompt, list(new), list(new.values())))


@every_policy
def test_a_prompt_larger_than_the_arena_keeps_its_head_without_a_gap(policy: str) -> None:
    slots, keys = table(8, policy), chunks("long", 20)
    store(slots, 0, chunks("other", 6), list(range(6)))
    for part, positions in steps(keys, 3):
        store(slots, 1, part, positions)
    assert leading(slots, keys) == 8
    assert sum(map(slots.is_ready, keys)) == 8


@every_policy
def test_a_prompt_that_comes_back_is_as_young_as_its_last_step(policy: str) -> None:
    slots, asked = table(12, policy), chunks("asked", 4)
    store(slots, 0, asked, list(range(4)))
    store(slots, 1, chunks("other", 8), list(range(8)))
    for step in range(4):
        slots.touch(2, [asked[step]], [step])  # a server looks its chunks up one after the other
    store(slots, 3, chunks("new", 8), list(range(8)))
    assert leading(slots, asked) == 4
