"""Each policy against a slow model of itself: plain lists of lines, one victim at a time."""

from __future__ import annotations

from typing import ClassVar

import hypothesis.strategies as st
from eviction_models import MODELS, evict
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, PromptId

KEYS = [b"%d" % i for i in range(20)]  # so few that no sweep reaches its bound, which has a test of its own
OLD_PROMPTS = 4  # so few that they share chunks, meet again, and interleave

prompts = st.integers(0, OLD_PROMPTS - 1)
# Each chunk near its own place in whatever prompt it is in, and no two in one place.
batches = st.lists(st.tuples(st.integers(0, len(KEYS) - 1), st.integers(0, 1)), max_size=8).map(
    lambda drawn: [(KEYS[number], number + len(KEYS) * lap) for number, lap in drawn]
)


class PolicyMachine(RuleBasedStateMachine):
    name: ClassVar[str]

    @initialize(capacity_chunks=st.sampled_from([3, 8, len(KEYS)]))
    def start(self, capacity_chunks: int) -> None:
        self.policy = POLICIES[self.name](capacity_chunks)
        self.model = MODELS[self.name](capacity_chunks)

    def resident(self) -> set[ChunkKey]:
        return {key for key in KEYS if key in self.policy}

    @rule(prompt=prompts)
    def arrive(self, prompt: PromptId) -> None:
        self.policy.arrive(prompt)
        self.model.arrive(prompt)

    @rule(prompt=prompts, placed=batches)
    def insert(self, prompt: PromptId, placed: list[tuple[ChunkKey, int]]) -> None:
        new = {key: position for key, position in placed if key not in self.resident()}
        self.policy.insert(prompt, list(new), list(new.values()))
        self.model.insert(prompt, new.items())

    @rule(prompt=prompts, placed=batches)
    def touch(self, prompt: PromptId, placed: list[tuple[ChunkKey, int]]) -> None:
        self.policy.touch(prompt, [key for key, _ in placed], [position for _, position in placed])
        self.model.touch(prompt, placed)

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: ChunkKey) -> None:
        self.policy.remove(key)
        for lines in self.model.lists:
            lines.remove(key)
        self.model.forget(key)

    @rule(
        count=st.integers(-1, 10),
        pinned=st.sets(st.sampled_from(KEYS)),
        spare=st.none() | prompts,
    )
    def evict(self, count: int, pinned: set[ChunkKey], spare: PromptId | None) -> None:
        line = set() if spare is None else set(self.policy.line(spare))
        expected = evict(self.model, count, lambda key: key not in pinned, spare)
        victims = self.policy.evict(count, lambda key: key not in pinned, spare=spare)
        assert victims == expected
        assert not line.intersection(victims)
        if len(victims) < count:
            assert self.resident() <= pinned | line, "no other chunk could leave"

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.policy.check()
        assert len(self.policy) == len(self.resident())


class LruMachine(PolicyMachine):
    name = "lru"


class ArcMachine(PolicyMachine):
    name = "arc"


class S3FifoMachine(PolicyMachine):
    name = "s3fifo"


class ReuseMachine(PolicyMachine):
    name = "reuse"


MACHINE_SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestLru = LruMachine.TestCase
TestArc = ArcMachine.TestCase
TestS3Fifo = S3FifoMachine.TestCase
TestReuse = ReuseMachine.TestCase
TestLru.settings = TestArc.settings = TestS3Fifo.settings = TestReuse.settings = MACHINE_SETTINGS
