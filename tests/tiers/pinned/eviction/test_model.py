"""Each policy against a slow model of itself: plain lists, one victim at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import hypothesis.strategies as st
from eviction_rig import insert, touch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, Evictable
from kvtier.tiers.pinned.eviction.s3fifo import USES_MAX

KEYS = [b"%d" % i for i in range(20)]  # so few that no sweep reaches its bound, which has a test of its own


class Model(Protocol):
    def insert(self, key: ChunkKey) -> None: ...
    def touch(self, key: ChunkKey) -> None: ...
    def remove(self, key: ChunkKey) -> None: ...
    def victim(self, evictable: Evictable) -> ChunkKey | None: ...
    def settle(self) -> None:
        """A batch of inserts or evictions is over."""

    def resident(self) -> list[ChunkKey]: ...


def forget(key: ChunkKey, *parts: list[ChunkKey]) -> None:
    for part in parts:
        if key in part:
            part.remove(key)


class LruModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.order: list[ChunkKey] = []
        self.passed: list[ChunkKey] = []

    def insert(self, key: ChunkKey) -> None:
        self.order.append(key)

    def touch(self, key: ChunkKey) -> None:
        self.order.remove(key)
        self.order.append(key)

    def remove(self, key: ChunkKey) -> None:
        forget(key, self.order)

    def victim(self, evictable: Evictable) -> ChunkKey | None:
        while self.order:
            key = self.order.pop(0)
            if evictable(key):
                return key
            self.passed.append(key)
        return None

    def settle(self) -> None:
        self.order += self.passed
        self.passed = []

    def resident(self) -> list[ChunkKey]:
        return self.order


class ArcModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.capacity_chunks = capacity_chunks
        self.p = 0
        self.t1: list[ChunkKey] = []
        self.t2: list[ChunkKey] = []
        self.b1: list[ChunkKey] = []
        self.b2: list[ChunkKey] = []
        self.passed: list[tuple[list[ChunkKey], ChunkKey]] = []

    def insert(self, key: ChunkKey) -> None:
        if key in self.b1:
            self.p = min(self.capacity_chunks, self.p + max(1, len(self.b2) // len(self.b1)))
        if key in self.b2:
            self.p = max(0, self.p - max(1, len(self.b1) // len(self.b2)))
        (self.t2 if key in self.b1 + self.b2 else self.t1).append(key)
        forget(key, self.b1, self.b2)

    def touch(self, key: ChunkKey) -> None:
        forget(key, self.t1, self.t2)
        self.t2.append(key)

    def remove(self, key: ChunkKey) -> None:
        forget(key, self.t1, self.t2, self.b1, self.b2)

    def victim(self, evictable: Evictable) -> ChunkKey | None:
        while self.t1 or self.t2:
            once_count = len(self.t1) + sum(part is self.t1 for part, _ in self.passed)
            first, second = (self.t1, self.t2) if once_count > self.p else (self.t2, self.t1)
            part = first or second
            key = part.pop(0)
            if evictable(key):
                (self.b1 if part is self.t1 else self.b2).append(key)
                return key
            self.passed.append((part, key))
        return None

    def settle(self) -> None:
        for part, key in self.passed:
            part.append(key)
        self.passed = []
        while self.b1 and len(self.t1) + len(self.b1) > self.capacity_chunks:
            self.b1.pop(0)
        while len(self.b1) + len(self.b2) > self.capacity_chunks:
            self.b2.pop(0)

    def resident(self) -> list[ChunkKey]:
        return self.t1 + self.t2


class S3FifoModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.capacity_chunks = capacity_chunks
        self.small: list[ChunkKey] = []
        self.main: list[ChunkKey] = []
        self.ghosts: list[ChunkKey] = []
        self.uses: dict[ChunkKey, int] = {}
        self.passed: list[tuple[list[ChunkKey], ChunkKey]] = []

    def insert(self, key: ChunkKey) -> None:
        (self.main if key in self.ghosts else self.small).append(key)
        forget(key, self.ghosts)
        self.uses[key] = 0

    def touch(self, key: ChunkKey) -> None:
        self.uses[key] = min(USES_MAX, self.uses[key] + 1)

    def remove(self, key: ChunkKey) -> None:
        forget(key, self.small, self.main, self.ghosts)

    def victim(self, evictable: Evictable) -> ChunkKey | None:
        while self.small or self.main:
            small_count = len(self.small) + sum(part is self.small for part, _ in self.passed)
            small_is_full = small_count >= max(1, self.capacity_chunks // 10)
            part = self.small if self.small and (small_is_full or not self.main) else self.main
            key = part.pop(0)
            if self.uses[key]:
                self.uses[key] = 0 if part is self.small else self.uses[key] - 1
                self.main.append(key)
            elif not evictable(key):
                self.passed.append((part, key))
            else:
                if part is self.small:
                    self.ghosts.append(key)
                return key
        return None

    def settle(self) -> None:
        for part, key in self.passed:
            part.append(key)
        self.passed = []
        del self.ghosts[: max(0, len(self.ghosts) - self.capacity_chunks)]

    def resident(self) -> list[ChunkKey]:
        return self.small + self.main


MODELS: Mapping[str, Callable[[int], Model]] = {"lru": LruModel, "arc": ArcModel, "s3fifo": S3FifoModel}

batches = st.lists(st.sampled_from(KEYS), max_size=8)


class PolicyMachine(RuleBasedStateMachine):
    name: ClassVar[str]

    @initialize(capacity_chunks=st.sampled_from([3, 8, len(KEYS)]))
    def start(self, capacity_chunks: int) -> None:
        self.policy = POLICIES[self.name](capacity_chunks)
        self.model = MODELS[self.name](capacity_chunks)

    @rule(keys=batches)
    def insert(self, keys: list[ChunkKey]) -> None:
        new = [key for key in dict.fromkeys(keys) if key not in self.model.resident()]
        insert(self.policy, new)
        for key in reversed(new):
            self.model.insert(key)
        self.model.settle()

    @rule(keys=batches)
    def touch(self, keys: list[ChunkKey]) -> None:
        touch(self.policy, keys)
        for key in reversed(dict.fromkeys(keys)):
            if key in self.model.resident():
                self.model.touch(key)

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: ChunkKey) -> None:
        self.policy.remove(key)
        self.model.remove(key)

    @rule(count=st.integers(0, 10), pinned=st.sets(st.sampled_from(KEYS)))
    def evict(self, count: int, pinned: set[ChunkKey]) -> None:
        victims: list[ChunkKey] = []
        while len(victims) < count:
            key = self.model.victim(lambda key: key not in pinned)
            if key is None:
                break
            victims.append(key)
        self.model.settle()
        assert self.policy.evict(count, lambda key: key not in pinned) == victims

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        resident = set(self.model.resident())
        assert len(self.policy) == len(resident)
        assert {key for key in KEYS if key in self.policy} == resident
        self.policy.check()


class LruMachine(PolicyMachine):
    name = "lru"


class ArcMachine(PolicyMachine):
    name = "arc"


class S3FifoMachine(PolicyMachine):
    name = "s3fifo"


MACHINE_SETTINGS = settings(max_examples=100, stateful_step_count=40, deadline=None)

TestLru = LruMachine.TestCase
TestArc = ArcMachine.TestCase
TestS3Fifo = S3FifoMachine.TestCase
TestLru.settings = TestArc.settings = TestS3Fifo.settings = MACHINE_SETTINGS
