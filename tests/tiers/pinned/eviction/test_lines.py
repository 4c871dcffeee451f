"""Lines against a list of lists."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import PromptId
from kvtier.tiers.pinned.eviction.lines import Chunks, Lines
from kvtier.tiers.pinned.eviction.sweep import Sweep

PROMPTS = range(3)
KEYS = [b"%d" % i for i in range(10)]

prompts = st.sampled_from(PROMPTS)
keys = st.sampled_from(KEYS)
positions = st.integers(0, 5)  # some twice: groups of layers are counted side by side


class LinesMachine(RuleBasedStateMachine):
    """Chunks come out of order, behind each other, twice in one place, and change their prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()
        self.order: list[PromptId] = []
        self.held: dict[ChunkKey, tuple[PromptId, int]] = {}

    def of(self, prompt: PromptId) -> set[ChunkKey]:
        return {key for key, (owner, _) in self.held.items() if owner == prompt}

    @rule(prompt=prompts)
    def arrive(self, prompt: PromptId) -> None:
        self.lines.arrive(prompt)
        self.order = [other for other in self.order if other != prompt] + [prompt]

    @rule(prompt=prompts, placed=st.dictionaries(keys, positions, max_size=5))
    def add(self, prompt: PromptId, placed: dict[ChunkKey, int]) -> None:
        new = {key: position for key, position in placed.items() if key not in self.held}
        self.lines.add(self.lines.line(prompt), new.items())
        if prompt not in self.order:
            self.order.insert(0, prompt)
        self.held |= {key: (prompt, position) for key, position in new.items()}

    @rule(prompt=prompts, placed=st.lists(st.tuples(keys, positions), max_size=5))
    def use(self, prompt: PromptId, placed: list[tuple[ChunkKey, int]]) -> None:
        self.arrive(prompt)
        self.lines.use(self.lines.line(prompt), placed)
        self.held |= {key: (prompt, position) for key, position in placed if key in self.held}

    @rule(key=keys)
    def remove(self, key: ChunkKey) -> None:
        self.lines.remove(key)
        self.held.pop(key, None)

    @rule(spare=st.none() | prompts, count=st.integers(0, 4), pinned=st.sets(keys))
    def take_from_the_oldest(self, spare: PromptId | None, count: int, pinned: set[ChunkKey]) -> None:
        sweep = Sweep(self.lines, lambda key: key not in pinned, spare)
        line = sweep.oldest()
        owner = self.oldest(spare)
        assert (line.prompt if line else None) == owner
        if line is None:
            return
        victims = sweep.take(line, count)
        places = [self.held.pop(key)[1] for key in victims]
        assert places == sorted(places, reverse=True)
        kept = [self.held[key][1] for key in self.of(line.prompt)]
        assert not places or max(kept, default=0) <= places[-1]
        assert not pinned.intersection(victims)
        if len(victims) < count and kept:  # its tail is in use
            self.order = [prompt for prompt in self.order if prompt != line.prompt] + [line.prompt]
        sweep.end()

    def oldest(self, spare: PromptId | None) -> PromptId | None:
        """Whose line is the oldest; empty ones before it go, and the spared one becomes the youngest."""
        ahead = [prompt for prompt in self.order if self.of(prompt)]
        owner = next((prompt for prompt in ahead if prompt != spare), None)
        start = len(self.order) if owner is None else self.order.index(owner)
        passed = [prompt for prompt in self.order[:start] if self.of(prompt)]
        self.order = self.order[start:] + passed
        return owner

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        self.lines.check()
        assert len(self.lines) == len(self.held)
        assert {prompt: set(self.lines.chunks(prompt)) for prompt in PROMPTS} == {
            prompt: self.of(prompt) for prompt in PROMPTS
        }


TestLines = LinesMachine.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_prompt_holds_its_chunks_in_several_lists() -> None:
    held = Chunks({b"a": 0}, [b"b", b"c"])
    assert (len(held), list(held)) == (3, [b"a", b"b", b"c"])
    assert b"c" in held
    assert b"d" not in held


def test_a_line_that_came_in_order_is_never_sorted() -> None:
    lines = Lines()
    for start in range(0, 40, 4):
        lines.add(lines.arrive(7), [(b"%d" % i, i) for i in range(start, start + 4)])
    assert lines.line(7).is_sorted
    lines.add(lines.arrive(7), [(b"early", 3)])
    assert not lines.line(7).is_sorted


def test_what_a_prompt_got_while_its_line_was_set_aside_joins_it() -> None:
    lines = Lines()
    aside = lines.arrive(1)
    lines.add(aside, [(b"head", 0), (b"tail", 2)])
    lines.set_aside(aside)
    lines.add(lines.arrive(1), [(b"middle", 1)])
    lines.put_back(aside)
    lines.check()
    aside.sort()
    assert list(lines.chunks(1)) == [b"head", b"middle", b"tail"]
