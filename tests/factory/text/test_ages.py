from __future__ import annotations

import pytest

from kvtier.factory.text.ages import format_age, parse_age
from kvtier.tiers import ConfigError


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800)])
def test_an_age_is_read_in_seconds(text: str, seconds: int) -> None:
    assert parse_age(text, "--older-than") == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 d", "7w"])
def test_what_is_no_age_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--older-than: should be a number with the unit s, m, h or d"):
        parse_age(text, "--older-than")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (3_599, "60m"), (3_600, "1h"), (200_000, "2d")],
)
def test_an_age_is_shown_in_the_largest_unit_that_it_fills(seconds: float, text: str) -> None:
    assert format_age(seconds) == text
