"""What every policy promises, and what makes each one itself."""

from __future__ import annotations

import pytest

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import (
    POLICIES,
    S3FIFO_REPRIEVES_MAX,
    ArcPolicy,
    EvictionPolicy,
    LruPolicy,
    S3FifoPolicy,
)


def chunks(prefix: str, count: int) -> list[ChunkKey]:
    return [f"{prefix}{position}".encode() for position in range(count)]


def anything(key: ChunkKey) -> bool:
    return True


def nothing(key: ChunkKey) -> bool:
    return False


def admit(policy: EvictionPolicy, capacity_chunks: int, keys: list[ChunkKey]) -> list[ChunkKey]:
    """Make room for `keys` and insert them, as an owner does; the victims are returned."""
    victims = policy.evict(len(policy) + len(keys) - capacity_chunks, anything)
    policy.insert(keys)
    policy.check()
    return victims


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> EvictionPolicy:
    return POLICIES[request.param](10)


def test_inserted_chunks_are_resident_until_they_are_evicted(policy: EvictionPolicy) -> None:
    keys = chunks("a", 4)
    policy.insert(keys)
    assert len(policy) == 4
    victims = policy.evict(3, anything)
    assert len(victims) == len(set(victims)) == 3
    assert [key in policy for key in keys] == [key not in victims for key in keys]
    assert len(policy) == 1


def test_the_tail_of_a_batch_leaves_before_its_head(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    policy.insert(keys)
    assert policy.evict(5, anything) == keys[::-1]


def test_the_tail_of_a_touched_batch_leaves_before_its_head(policy: EvictionPolicy) -> None:
    keys = chunks("a", 5)
    policy.insert(keys)
    policy.touch(keys)
    assert policy.evict(5, anything) == keys[::-1]


def test_an_untouched_chunk_leaves_before_a_touched_one(policy: EvictionPolicy) -> None:
    used, unused = chunks("used", 2), chunks("unused", 2)
    policy.insert(used)
    policy.insert(unused)
    policy.touch(used)
    assert policy.evict(2, anything) == unused[::-1]


def test_a_pinned_chunk_is_passed_over_and_comes_last_from_then_on(policy: EvictionPolicy) -> None:
    first, second, third = chunks("a", 3)
    policy.insert([first, second, third])
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
    policy.insert(keys)
    policy.touch(keys[:2])
    assert policy.evict(3, nothing) == []
    policy.check()
    assert policy.evict(3, anything) == keys[:1:-1]


def test_asking_for_more_than_there_is_gives_all(policy: EvictionPolicy) -> None:
    keys = chunks("a", 3)
    policy.insert(keys)
    assert set(policy.evict(7, anything)) == set(keys)
    assert len(policy) == 0
    assert policy.evict(1, anything) == []


@pytest.mark.parametrize("count", [0, -4])
def test_asking_for_nothing_gives_nothing(policy: EvictionPolicy, count: int) -> None:
    policy.insert(chunks("a", 3))
    assert policy.evict(count, anything) == []
    assert len(policy) == 3


def test_a_removed_chunk_is_forgotten_without_a_ghost(policy: EvictionPolicy) -> None:
    keys = chunks("a", 3)
    policy.insert(keys)
    policy.remove(keys[1])
    policy.remove(b"never inserted")
    policy.check()
    assert keys[1] not in policy
    policy.insert([keys[1]])
    policy.touch([keys[0], keys[2]])
    assert policy.evict(1, anything) == [keys[1]]


def test_a_removed_ghost_comes_back_as_a_new_chunk(policy: EvictionPolicy) -> None:
    policy.insert([b"ghost"])
    policy.evict(1, anything)
    policy.remove(b"ghost")
    policy.insert([b"ghost"])
    policy.insert([b"new"])
    assert policy.evict(1, anything) == [b"ghost"]


def test_unknown_keys_are_not_touched_into_residence(policy: EvictionPolicy) -> None:
    policy.touch(chunks("never inserted", 3))
    policy.check()
    assert len(policy) == 0


def test_a_ghost_is_not_touched_into_residence(policy: EvictionPolicy) -> None:
    policy.insert([b"ghost"])
    policy.evict(1, anything)
    policy.touch([b"ghost"])
    policy.check()
    assert b"ghost" not in policy


def test_a_chunk_cannot_become_resident_twice(policy: EvictionPolicy) -> None:
    policy.insert(chunks("a", 2))
    with pytest.raises(AssertionError, match="resident twice"):
        policy.insert([b"a1"])


def test_ghosts_are_bounded_by_the_capacity(policy: EvictionPolicy) -> None:
    for turn in range(50):
        keys = chunks(f"{turn}-", 5)
        admit(policy, 10, keys)
        if turn % 2:
            policy.touch(keys)
            policy.check()
    assert len(policy) == 10


@pytest.mark.parametrize("policy_name", sorted(POLICIES))
def test_a_tier_of_one_chunk_works(policy_name: str) -> None:
    tiny = POLICIES[policy_name](1)
    for key in chunks("a", 5):
        admit(tiny, 1, [key])
        tiny.touch([key])
    assert b"a4" in tiny


def test_lru_forgets_frequency() -> None:
    lru = LruPolicy(3)
    lru.insert([b"often"])
    for _ in range(5):
        lru.touch([b"often"])
    lru.insert([b"later"])
    assert lru.evict(1, anything) == [b"often"]


def test_an_owner_that_inserts_before_it_touches_keeps_heads_longest() -> None:
    lru = LruPolicy(4)
    head, rest = chunks("head", 2), chunks("rest", 2)
    lru.insert(head)
    lru.insert(rest)
    lru.touch(head)
    assert lru.evict(4, anything) == [*rest[::-1], *head[::-1]]


@pytest.mark.parametrize("policy_name", ["arc", "s3fifo"])
def test_a_scan_does_not_push_out_chunks_that_are_used_again(policy_name: str) -> None:
    policy = POLICIES[policy_name](10)
    used = chunks("used", 5)
    admit(policy, 10, used)
    policy.touch(used)
    for turn in range(20):
        admit(policy, 10, chunks(f"scan{turn}-", 5))
    assert all(key in policy for key in used)


def test_lru_is_pushed_out_by_a_scan() -> None:
    policy = LruPolicy(10)
    used = chunks("used", 5)
    admit(policy, 10, used)
    policy.touch(used)
    for turn in range(2):
        admit(policy, 10, chunks(f"scan{turn}-", 5))
    assert not any(key in policy for key in used)


def test_arc_keeps_recent_chunks_when_their_ghosts_come_back() -> None:
    arc = ArcPolicy(4)
    arc.insert([b"new0", b"new1"])
    arc.insert([b"again0", b"again1"])
    arc.touch([b"again0", b"again1"])
    assert arc.evict(1, anything) == [b"new1"]
    arc.insert([b"new1"])  # its ghost was there: the first list was cut too short
    assert arc.evict(1, anything) == [b"again1"]
    assert b"new0" in arc


def test_arc_gives_room_back_when_ghosts_of_used_chunks_come_back() -> None:
    arc = ArcPolicy(4)
    arc.insert([b"new0", b"new1"])
    arc.insert([b"again0", b"again1"])
    arc.touch([b"again0", b"again1"])
    arc.evict(1, anything)
    arc.insert([b"new1"])
    assert arc.evict(1, anything) == [b"again1"]
    arc.insert([b"again1"])
    assert arc.evict(1, anything) == [b"new0"]


def test_s3fifo_takes_a_returning_ghost_into_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    s3fifo.insert([b"ghost"])
    s3fifo.evict(1, anything)
    s3fifo.insert([b"ghost"])
    s3fifo.insert([b"new"])
    assert s3fifo.evict(1, anything) == [b"new"]


def test_s3fifo_counts_a_key_once_in_one_batch() -> None:
    s3fifo = S3FifoPolicy(10)
    for key in (b"a", b"b"):
        s3fifo.insert([key])
        s3fifo.evict(1, anything)
        s3fifo.insert([key])  # from its ghost: straight into the main queue
    s3fifo.touch([b"a", b"a", b"a"])
    s3fifo.touch([b"b"])
    s3fifo.touch([b"b"])
    assert s3fifo.evict(2, anything) == [b"a", b"b"]


def test_s3fifo_forgets_the_uses_of_a_chunk_that_enters_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    s3fifo.insert([b"main"])
    s3fifo.evict(1, anything)
    s3fifo.insert([b"used"])
    s3fifo.touch([b"used"])
    s3fifo.touch([b"used"])
    assert s3fifo.evict(1, lambda key: key != b"used") == []
    s3fifo.insert([b"main"])  # from its ghost: behind the chunk that came out of the small queue
    assert s3fifo.evict(1, anything) == [b"used"]


def test_s3fifo_bounds_the_sweep_when_every_chunk_was_used() -> None:
    count = 4 * S3FIFO_REPRIEVES_MAX
    s3fifo = S3FifoPolicy(count)
    keys = chunks("a", count)
    s3fifo.insert(keys)
    s3fifo.touch(keys)
    oldest_first = keys[::-1]
    assert s3fifo.evict(1, anything) == [oldest_first[S3FIFO_REPRIEVES_MAX]]
