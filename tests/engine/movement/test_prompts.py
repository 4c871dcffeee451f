"""Where the chunks of a prompt lie in it."""

from __future__ import annotations

from kvtier.engine.movement.prompts import Prompt


def test_chunks_are_counted_as_they_are_first_named() -> None:
    prompt = Prompt(0)
    assert prompt.place([b"a", b"b"]) == [0, 1]
    assert prompt.place([b"c", b"b"]) == [2, 1]
    assert prompt.place([b"b", b"c", b"d"]) == [1, 2, 3]
    assert prompt.place([b"d", b"a"]) == [3, 0]


def test_a_chunk_that_is_named_twice_has_one_place() -> None:
    prompt = Prompt(0)
    assert prompt.place([b"a", b"b", b"a", b"c"]) == [0, 1, 0, 2]


def test_groups_of_layers_are_counted_side_by_side() -> None:
    prompt = Prompt(0, lambda key: key[-1:])
    assert prompt.place([b"a0", b"b0", b"a1", b"b1", b"c0"]) == [0, 1, 0, 1, 2]


def test_what_the_server_tells_is_taken_as_it_is() -> None:
    prompt = Prompt(0)
    assert prompt.place([b"c", b"d"], [32, 48]) == [32, 48]
    assert prompt.place([b"d"]) == [48]
