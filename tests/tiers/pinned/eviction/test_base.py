"""What every policy does."""

from __future__ import annotations

import pytest
from eviction_rig import admit, anything, chunks, insert, nothing, touch

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, EvictionPolicy


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> EvictionPolicy:
    return POLICIES[request.param](10)


def test_inserted_chunks_are_resident_until_they_are_evicted(policy: EvictionPolicy) -> None:
    keys = chunks("a", 4)
    insert(policy, keys)
    assert len(policy) == 4
    victims = policy.evict(3, anything)
    assert len(victims) == len(set(victims)) == 3
    assert [key in policy for key in keys] == [key not in victims for key in keys]
    assert len(policy) == 1


def test_the_tail_of_a_batch_leaves_before_its_head(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    insert(policy, keys)
    assert policy.evict(5, anything) == keys[::-1]


def test_the_tail_of_a_touched_batch_leaves_before_its_head(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    insert(policy, keys)
    touch(policy, keys)
    assert policy.evict(5, anything) == keys[::-1]


def test_an_untouched_chunk_leaves_before_a_touched_one(policy: EvictionPolicy) -> None:
    used, unused = chunks("used", 2), chunks("unused", 2)
    insert(policy, used)
    insert(policy, unused)
    touch(policy, used)
    assert policy.evict(2, anything) == unused[::-1]


def test_a_pinned_chunk_is_passed_over_and_comes_last_from_then_on(policy: EvictionPolicy) -> None:
    first, second, third = chunks("a", 3)
    insert(policy, [first, second, third])
    asked: list[ChunkKey] = []

    def is_idle(key: ChunkKey) -> bool:
        asked.append(key)
        return key != third

    assert policy.evict(1, is_idle) == [second]
    assert policy.evict(1, is_idle) == [first]
    assert asked == [third, second, first], "the second call does not meet the pinned one again"
    assert policy.evict(1, anything) == [third]


def test_all_pinned_gives_no_victim_and_changes_no_order(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    insert(policy, keys)
    touch(policy, keys[:2])
    assert policy.evict(3, nothing) == []
    policy.check()
    assert policy.evict(3, anything) == keys[:1:-1]


def test_asking_for_more_than_there_is_gives_all(policy: EvictionPolicy) -> None:
    keys = chunks("a", 3)
    insert(policy, keys)
    assert set(policy.evict(7, anything)) == set(keys)
    assert len(policy) == 0
    assert policy.evict(1, anything) == []


@pytest.mark.parametrize("count", [0, -4])
def test_asking_for_nothing_gives_nothing(policy: EvictionPolicy, count: int) -> None:
    insert(policy, chunks("a", 3))
    assert policy.evict(count, anything) == []
    assert len(policy) == 3


def test_a_removed_chunk_is_forgotten_without_a_ghost(policy: EvictionPolicy) -> None:
    keys = chunks("a", 3)
    insert(policy, keys)
    policy.remove(keys[1])
    policy.remove(b"never inserted")
    policy.check()
    assert keys[1] not in policy
    insert(policy, [keys[1]])
    touch(policy, [keys[0], keys[2]])
    assert policy.evict(1, anything) == [keys[1]]


def test_a_removed_ghost_comes_back_as_a_new_chunk(policy: EvictionPolicy) -> None:
    insert(policy, [b"ghost"])
    policy.evict(1, anything)
    policy.remove(b"ghost")
    insert(policy, [b"ghost"])
    insert(policy, [b"new"])
    assert policy.evict(1, anything) == [b"ghost"]


def test_unknown_keys_are_not_touched_into_residence(policy: EvictionPolicy) -> None:
    touch(policy, chunks("never inserted", 3))
    policy.check()
    assert len(policy) == 0


def test_a_ghost_is_not_touched_into_residence(policy: EvictionPolicy) -> None:
    insert(policy, [b"ghost"])
    policy.evict(1, anything)
    touch(policy, [b"ghost"])
    policy.check()
    assert b"ghost" not in policy


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


@pytest.mark.parametrize("policy_name", sorted(POLICIES))
def test_a_tier_of_one_chunk_works(policy_name: str) -> None:
    tiny = POLICIES[policy_name](1)
    for key in chunks("a", 5):
        admit(tiny, 1, [key])
        touch(tiny, [key])
    assert b"a4" in tiny


@pytest.mark.parametrize("policy_name", ["arc", "s3fifo"])
def test_a_scan_does_not_push_out_chunks_that_are_used_again(policy_name: str) -> None:
    policy = POLICIES[policy_name](10)
    used = chunks("used", 5)
    admit(policy, 10, used)
    touch(policy, used)
    for turn in range(20):
        admit(policy, 10, chunks(f"scan{turn}-", 5))
    assert all(key in policy for key in used)
