"""What every policy of ours does."""

from __future__ import annotations

import pytest
from eviction_rig import admit, anything, chunks, extend, insert, nothing, touch

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, EvictionPolicy
from kvtier.tiers.pinned.eviction.lines import EMPTY_LINES_MAX
from kvtier.tiers.pinned.eviction.testing import EvictionContract


class TestLru(EvictionContract):
    make_policy = POLICIES["lru"]


class TestArc(EvictionContract):
    make_policy = POLICIES["arc"]


class TestS3Fifo(EvictionContract):
    make_policy = POLICIES["s3fifo"]


class TestReuse(EvictionContract):
    make_policy = POLICIES["reuse"]


def test_no_policy_is_left_out() -> None:
    ours = {contract.make_policy for contract in (TestLru, TestArc, TestS3Fifo, TestReuse)}
    assert ours == set(POLICIES.values())


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> EvictionPolicy:
    return POLICIES[request.param](10)


def test_an_unused_line_leaves_before_a_used_one(policy: EvictionPolicy) -> None:
    used, unused = chunks("used", 2), chunks("unused", 2)
    insert(policy, used)
    insert(policy, unused)
    touch(policy, used)
    assert policy.evict(2, anything) == unused[::-1]


def test_lines_are_as_old_as_their_allocation_and_not_as_their_transfer(policy: EvictionPolicy) -> None:
    policy.arrive(0)
    policy.arrive(1)
    policy.insert(1, chunks("second", 2), range(2))
    assert policy.evict(0, anything) == []
    policy.insert(0, chunks("first", 2), range(2))
    assert policy.evict(4, anything) == [*chunks("first", 2)[::-1], *chunks("second", 2)[::-1]]


def test_a_prompt_whose_transfer_took_longest_is_oldest_also_when_all_others_left(
    policy: EvictionPolicy,
) -> None:
    policy.arrive(0)
    extend(policy, 1, chunks("second", 2))
    policy.evict(2, anything)  # meets the empty line of the first
    extend(policy, 2, chunks("third", 1))
    policy.insert(0, chunks("first", 1), [0])
    assert policy.evict(1, anything) == chunks("first", 1)


def test_prompts_that_came_to_nothing_do_not_pile_up(policy: EvictionPolicy) -> None:
    insert(policy, chunks("a", 3))
    for prompt in range(10, 10 + 5 * EMPTY_LINES_MAX):
        policy.arrive(prompt)
    policy.check()


def test_a_pinned_tail_is_passed_over_and_its_line_comes_last_from_then_on(policy: EvictionPolicy) -> None:
    first, second, third = chunks("a", 3)
    for key in (first, second, third):
        insert(policy, [key])
    asked: list[ChunkKey] = []

    def is_idle(key: ChunkKey) -> bool:
        asked.append(key)
        return key != first

    assert policy.evict(1, is_idle) == [second]
    assert policy.evict(1, is_idle) == [third]
    assert asked == [first, second, third], "the second call does not meet the pinned one again"
    assert policy.evict(1, anything) == [first]


def test_all_pinned_gives_no_victim_and_changes_no_order(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    insert(policy, keys)
    touch(policy, keys[:2])
    assert policy.evict(3, nothing) == []
    policy.check()
    assert policy.evict(3, anything) == keys[:1:-1]


def test_a_removed_ghost_comes_back_as_a_new_chunk(policy: EvictionPolicy) -> None:
    insert(policy, [b"ghost"])
    policy.evict(1, anything)
    policy.remove(b"ghost")
    insert(policy, [b"ghost"])
    insert(policy, [b"new"])
    assert policy.evict(1, anything) == [b"ghost"]


def test_a_chunk_cannot_become_resident_twice(policy: EvictionPolicy) -> None:
    insert(policy, chunks("a", 2))
    with pytest.raises(AssertionError, match="resident twice"):
        insert(policy, [b"a1"])


def test_ghosts_are_bounded_by_the_capacity(policy: EvictionPolicy) -> None:
    for turn in range(50):
        keys = chunks(f"{turn}-", 5)
        admit(policy, 10, keys)
        if turn % 2:
            touch(policy, keys)
            policy.check()
    assert len(policy) == 10


@pytest.mark.parametrize("policy_name", ["arc", "s3fifo", "reuse"])
def test_a_scan_does_not_push_out_chunks_that_are_used_again(policy_name: str) -> None:
    policy = POLICIES[policy_name](10)
    used = chunks("used", 5)
    admit(policy, 10, used)
    touch(policy, used)
    for turn in range(20):
        admit(policy, 10, chunks(f"scan{turn}-", 5))
    assert all(key in policy for key in used)
