"""What a replay says of first tokens, request by request."""

import pytest

from kvtier.engine.replay.first_tokens import FirstTokenFigures, FirstTokens, Speeds

SLOT, BELOW = False, True


def counted(bytes_per_s: float, *requests: tuple[list[bool], int]) -> tuple[list[int], FirstTokenFigures]:
    """Requests of chunks of 100 bytes and 10 tokens, 10 of which are computed in a second."""
    first_tokens = FirstTokens(Speeds(10, 10.0, bytes_per_s), 100)
    used = [first_tokens.hits(is_below, chunks) for is_below, chunks in requests]
    return used, first_tokens.figures()


def test_a_fast_tier_is_loaded_from() -> None:
    used, figures = counted(200.0, ([SLOT, BELOW, BELOW], 4), ([], 3))
    assert used == [3, 0]
    assert figures == FirstTokenFigures(2, 0, 4, median_s=2.5, median_loading_all_s=2.5)


def test_what_a_slow_tier_has_is_computed_from_its_first_chunk_on() -> None:
    used, figures = counted(50.0, ([SLOT, BELOW, BELOW, SLOT], 4), ([SLOT], 1))
    assert used == [1, 1]
    assert figures == FirstTokenFigures(0, 2, 3, median_s=1.5, median_loading_all_s=2.0)


def test_what_is_in_slots_takes_no_time() -> None:
    used, figures = counted(50.0, ([SLOT, SLOT], 2))
    assert used == [2]
    assert figures.median_s == 0


@pytest.mark.parametrize("bytes_per_s", [99.0, 101.0])
def test_the_rule_is_never_slower_than_loading_all(bytes_per_s: float) -> None:
    _, figures = counted(bytes_per_s, ([BELOW, BELOW], 5))
    assert figures.median_s <= figures.median_loading_all_s
