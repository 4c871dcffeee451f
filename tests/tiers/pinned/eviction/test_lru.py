from __future__ import annotations

from eviction_rig import admit, anything, chunks, insert, touch

from kvtier.tiers.pinned.eviction.lru import LruPolicy


def test_lru_forgets_frequency() -> None:
    lru = LruPolicy(3)
    insert(lru, [b"often"])
    for _ in range(5):
        touch(lru, [b"often"])
    insert(lru, [b"later"])
    assert lru.evict(1, anything) == [b"often"]


def test_an_owner_that_inserts_before_it_touches_keeps_heads_longest() -> None:
    lru = LruPolicy(4)
    head, rest = chunks("head", 2), chunks("rest", 2)
    insert(lru, head)
    insert(lru, rest)
    touch(lru, head)
    assert lru.evict(4, anything) == [*rest[::-1], *head[::-1]]


def test_lru_is_pushed_out_by_a_scan() -> None:
    policy = LruPolicy(10)
    used = chunks("used", 5)
    admit(policy, 10, used)
    touch(policy, used)
    for turn in range(2):
        admit(policy, 10, chunks(f"scan{turn}-", 5))
    assert not any(key in policy for key in used)
