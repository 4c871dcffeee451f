from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.factory.text.units import (
    HOW_TO_WRITE,
    SIZE_BYTES_MAX,
    UNITS,
    Percent,
    format_size,
    parse_size,
    size_bytes,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0, 0),
        (68719476736, 64 << 30),
        ("1024B", 1024),
        ("64GiB", 64 << 30),
        ("64 GiB", 64 << 30),
        ("1.5TB", 1_500_000_000_000),
        ("2TiB", 2 << 40),
        ("1PiB", 1 << 50),
        ("0.3kB", 300),
        ("1.0005KiB", 1024),
    ],
)
def test_a_size_is_read(written: object, expected: int) -> None:
    assert parse_size(written) == expected


def test_a_percentage_waits_for_its_whole() -> None:
    assert parse_size("80%") == Percent(Decimal(80))
    assert parse_size("12.5 %") == Percent(Decimal("12.5"))
    assert size_bytes(Percent(Decimal(80)), 1001) == 800
    assert size_bytes(Percent(Decimal("12.5")), 1 << 40) == 1 << 37
    assert size_bytes(77, 1001) == 77


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("64G", '"64G" is not a size; did you mean "64GiB"?'),
        ("64Gi", '"64Gi" is not a size; did you mean "64GiB"?'),
        ("64gib", '"64gib" is not a size; did you mean "64GiB"?'),
        ("64 gb", '"64 gb" is not a size; did you mean "64GB"?'),
        (" 64GiB", '" 64GiB" is not a size; did you mean "64GiB"?'),
        ("1.5t", '"1.5t" is not a size; did you mean "1.5TiB"?'),
        ("64", '"64" is not a size; it has no unit; did you mean "64GiB"?'),
        ("64XiB", f'"64XiB" is not a size; {HOW_TO_WRITE}'),
        ("-64GiB", f'"-64GiB" is not a size; {HOW_TO_WRITE}'),
        ("1e9B", f'"1e9B" is not a size; {HOW_TO_WRITE}'),
        ("\uff16\uff14GiB", f'"\uff16\uff14GiB" is not a size; {HOW_TO_WRITE}'),
        ("", f'"" is not a size; {HOW_TO_WRITE}'),
        ("120%", '"120%" is more than the whole; did you mean "100%"?'),
        ("8193PiB", f'"8193PiB" is larger than any file can be; {HOW_TO_WRITE}'),
        (2**63, f"9223372036854775808 is larger than any file can be; {HOW_TO_WRITE}"),
        (1.5e9, "1500000000.0 is not a whole number of bytes; did you mean 1500000000?"),
        (1.5, f"1.5 is not a size; {HOW_TO_WRITE}"),
        (float("nan"), f"NaN is not a size; {HOW_TO_WRITE}"),
        (-1, f"-1 is not a size; {HOW_TO_WRITE}"),
        (True, f"true is not a size; {HOW_TO_WRITE}"),
        (None, f"null is not a size; {HOW_TO_WRITE}"),
        ({}, f"{{}} is not a size; {HOW_TO_WRITE}"),
    ],
)
def test_what_is_no_size_is_refused_with_what_was_meant(written: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(written)
    assert str(caught.value) == message


@given(st.integers(0, 8191), st.sampled_from(sorted(UNITS)))
def test_every_unit_is_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers(0, SIZE_BYTES_MAX - (1 << 50)))
def test_a_formatted_size_reads_back_within_its_one_decimal(size: int) -> None:
    read = parse_size(format_size(size))
    assert isinstance(read, int)
    assert abs(read - size) <= max(size * 0.05, 1)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (64 << 30, "64GiB"), (1_500_000_000_000, "1.4TiB")]
)
def test_a_size_is_formatted_with_its_own_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.text() | st.integers() | st.floats() | st.none())
def test_anything_is_read_or_refused(written: Any) -> None:
    try:
        size = parse_size(written)
    except ValueError:
        return
    assert isinstance(size, Percent) or 0 <= size <= SIZE_BYTES_MAX
