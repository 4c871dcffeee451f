"""Contract checks for eviction policies; other packages test their own policies with them.

Subclass `EvictionContract` and name the class; pytest does the rest:

    class TestMyPolicy(EvictionContract):
        make_policy = MyPolicy
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ...base import ChunkKey
from .base import EvictionPolicy, PromptId


def _anything(key: ChunkKey) -> bool:
    return True


def _chunks(prefix: str, count: int) -> list[ChunkKey]:
    return [f"{prefix}{position}".encode() for position in range(count)]


class EvictionContract:
    """What every policy promises, as tests. Which prompt is worth more is the policy's own affair."""

    make_policy: ClassVar[Callable[[int], EvictionPolicy]]

    def made(self, capacity_chunks: int) -> EvictionPolicy:
        return type(self).make_policy(capacity_chunks)

    def extend(
        self, policy: EvictionPolicy, prompt: PromptId, keys: Sequence[ChunkKey], start: int = 0
    ) -> None:
        """Let chunks of a prompt become resident, from a position on."""
        policy.arrive(prompt)
        policy.insert(prompt, keys, range(start, start + len(keys)))
        policy.check()

    def test_inserted_chunks_are_resident_until_they_are_evicted(self) -> None:
        policy, keys = self.made(10), _chunks("a", 4)
        self.extend(policy, 0, keys)
        assert len(policy) == 4
        victims = policy.evict(3, _anything)
        assert len(victims) == len(set(victims)) == 3
        assert [key in policy for key in keys] == [key not in victims for key in keys]
        assert len(policy) == 1

    def test_the_tail_of_a_prompt_leaves_before_its_head_however_it_came(self) -> None:
        for step in (1, 2, 3, 8):
            policy, keys = self.made(10), _chunks("a", 8)
            for start in range(0, 8, step):
                self.extend(policy, 0, keys[start : start + step], start)
            assert [policy.evict(1, _anything) for _ in keys] == [[key] for key in reversed(keys)]

    def test_positions_decide_and_not_the_order_of_arrival(self) -> None:
        policy, keys = self.made(10), _chunks("a", 6)
        for start in (4, 0, 2):
            self.extend(policy, 0, keys[start : start + 2], start)
        assert policy.evict(6, _anything) == keys[::-1]

    def test_a_prompt_uses_a_chunk_once(self) -> None:
        often, once = self.made(10), self.made(10)
        for policy, times in ((often, 5), (once, 1)):
            self.extend(policy, 0, _chunks("a", 4))
            for _ in range(times):
                policy.touch(1, _chunks("a", 2), range(2))
            self.extend(policy, 2, _chunks("b", 4))
        assert [often.evict(1, _anything) for _ in range(8)] == [once.evict(1, _anything) for _ in range(8)]

    def test_the_prompt_that_room_is_made_for_loses_nothing(self) -> None:
        policy = self.made(10)
        self.extend(policy, 0, _chunks("a", 6))
        self.extend(policy, 1, _chunks("b", 2))
        assert set(policy.line(0)) == set(_chunks("a", 6))
        assert set(policy.evict(10, _anything, spare=0)) == set(_chunks("b", 2))
        policy.check()
        assert policy.evict(1, _anything, spare=0) == []
        assert policy.evict(6, _anything) == _chunks("a", 6)[::-1]

    def test_what_is_in_use_stays_and_what_is_idle_before_it_is_found(self) -> None:
        policy, keys = self.made(10), _chunks("a", 6)
        self.extend(policy, 0, keys)
        assert policy.evict(3, lambda key: key not in (keys[5], keys[3])) == [keys[4], keys[2], keys[1]]
        policy.check()
        assert policy.evict(9, lambda key: False) == []
        assert policy.evict(9, _anything) == [keys[5], keys[3], keys[0]]

    def test_asking_for_too_much_gives_all_and_for_nothing_nothing(self) -> None:
        policy = self.made(10)
        self.extend(policy, 0, _chunks("a", 3))
        for count in (0, -4):
            assert policy.evict(count, _anything) == []
        assert set(policy.evict(7, _anything)) == set(_chunks("a", 3))
        assert policy.evict(1, _anything) == []
        assert len(policy) == 0

    def test_a_removed_chunk_is_forgotten_without_a_trace(self) -> None:
        policy, keys = self.made(10), _chunks("a", 3)
        self.extend(policy, 0, keys)
        policy.remove(keys[1])
        policy.remove(b"never inserted")
        policy.check()
        assert keys[1] not in policy
        assert set(policy.line(0)) == {keys[0], keys[2]}
        policy.evict(1, _anything)
        policy.remove(keys[2])  # a ghost now
        self.extend(policy, 1, [keys[1], keys[2]])
        assert len(policy) == 3

    def test_what_is_not_resident_is_not_touched_into_residence(self) -> None:
        policy = self.made(10)
        self.extend(policy, 0, [b"ghost"])
        policy.evict(1, _anything)
        policy.touch(1, [b"ghost", b"never inserted"], range(2))
        policy.check()
        assert len(policy) == 0
        assert b"ghost" not in policy

    def test_a_tier_of_one_chunk_works(self) -> None:
        policy = self.made(1)
        for prompt, key in enumerate(_chunks("a", 5)):
            policy.evict(len(policy), _anything)
            self.extend(policy, prompt, [key])
            policy.touch(10 + prompt, [key], [0])
            policy.check()
        assert b"a4" in policy

    def test_the_same_calls_evict_the_same_chunks(self) -> None:
        first, second = (list(self._victims_of_a_mix()) for _ in "ab")
        assert first == second

    def _victims_of_a_mix(self) -> Any:
        policy, prompts = self.made(50), itertools.count()
        for turn in range(60):
            keys = _chunks(f"{turn * turn % 17}-", 3 + turn % 5)
            held = [key for key in keys if key in policy]
            prompt = next(prompts)
            policy.touch(prompt, held, [keys.index(key) for key in held])
            new = [key for key in keys if key not in policy]
            yield policy.evict(len(policy) + len(new) - 50, _anything, spare=prompt)
            policy.arrive(prompt)
            policy.insert(prompt, new, [keys.index(key) for key in new])
            policy.check()
