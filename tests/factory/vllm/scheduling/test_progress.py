"""What of the chunks that a server offers was computed, and in which step."""

from __future__ import annotations

import pytest

from kvtier.engine.movement.rates import MeasuredPrefill
from kvtier.factory.vllm.scheduling.progress import Progress

CHUNK_TOKENS = 16


def keys_of(prompt: str, count: int, group: int = 0) -> list[bytes]:
    return [b"%s %d %d" % (prompt.encode(), number, group) for number in range(count)]


class Planned(MeasuredPrefill):
    """Notes what it is told, instead of measuring."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []

    def planned(self, tokens: int) -> None:
        self.tokens.append(tokens)


class Rig:
    def __init__(self) -> None:
        self.prefill = Planned()
        tokens = dict.fromkeys((b"0", b"1"), CHUNK_TOKENS)
        self.progress = Progress(self.prefill, tokens, lambda key: key[-1:])

    def step(self, *offers: tuple[str, list[bytes]]) -> int:
        """Plan a step that offers chunks; returns the tokens that it is said to compute."""
        self.prefill.tokens.clear()
        for request, keys in offers:
            self.progress.offered(request, keys)
        self.progress.step_ends()
        return sum(self.prefill.tokens)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_prompt_in_several_steps(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[0])
    assert [rig.step(("a", keys[start : start + 2])) for start in (0, 2, 4)] == [32, 32, 32]


def test_what_the_device_had_or_was_loaded_is_not_computed(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[5])  # the device has four, and one is loaded
    assert rig.step(("a", keys)) == 3 * CHUNK_TOKENS
    full = keys_of("b", 8)
    assert rig.step(("b", full)) == 0, "nothing was looked up in vain"


def test_chunks_that_are_offered_again_are_not_computed_again(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[0])
    assert [rig.step(("a", keys[:end])) for end in (2, 4, 8, 8)] == [32, 32, 64, 0]


def test_an_answer_is_not_a_prompt(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[0])
    assert rig.step(("a", keys[:2])) == 32
    for key in keys[2:]:
        for _ in range(CHUNK_TOKENS - 1):
            assert rig.step() == 0
        assert rig.step(("a", [key])) == 0


def test_a_prompt_that_completes_one_chunk_in_each_step(rig: Rig) -> None:
    keys = keys_of("a", 4)
    rig.progress.missed("a", keys[0])
    assert [rig.step(("a", [key])) for key in keys] == [0, 16, 16, 16], "the first may have taken more steps"


def test_chunks_that_take_several_steps_each_are_not_those_of_one(rig: Rig) -> None:
    keys = keys_of("a", 4)
    rig.progress.missed("a", keys[0])
    for key in keys:
        assert [rig.step(), rig.step(("a", [key])), rig.step()] == [0, 0, 0]


def test_several_requests_in_one_step(rig: Rig) -> None:
    first, second = keys_of("a", 4), keys_of("b", 4)
    rig.progress.missed("a", first[0])
    rig.progress.missed("b", second[1])
    assert rig.step(("a", first), ("b", second), ("c", keys_of("c", 4))) == 7 * CHUNK_TOKENS


def test_of_groups_side_by_side_one_counts(rig: Rig) -> None:
    full, window = keys_of("a", 4, 0), keys_of("a", 4, 1)
    rig.progress.missed("a", full[1])
    rig.progress.missed("a", window[3])
    assert rig.step(("a", full + window)) == 3 * CHUNK_TOKENS


def test_a_request_that_is_asked_again_is_computed_from_its_last_miss(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[2])
    rig.progress.missed("a", keys[4])  # two of them came meanwhile
    assert rig.step(("a", keys)) == 4 * CHUNK_TOKENS


def test_a_request_that_has_ended_is_another_one_afterwards(rig: Rig) -> None:
    keys = keys_of("a", 8)
    rig.progress.missed("a", keys[0])
    assert rig.step(("a", keys[:4])) == 64
    rig.progress.forget("a")
    assert rig.step(("a", keys[4:])) == 0


def test_how_long_the_rest_of_a_prompt_is(rig: Rig) -> None:
    ends = {key: CHUNK_TOKENS * number for number, key in enumerate(keys_of("a", 8), start=1)}
    ends |= {key: CHUNK_TOKENS * number for number, key in enumerate(keys_of("a", 8, 1), start=1)}
    assert rig.progress.run_chunks(keys_of("a", 8)[2], ends) == 6
    assert rig.progress.run_chunks(keys_of("a", 8, 1)[7], ends) == 1
