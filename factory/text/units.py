"""Sizes as users write them: whole bytes, `"64GiB"`, `"1.5TB"`, or `"80%"` of something.

A size stays what was written until the machine is known: `parse_size` is pure, `size_bytes` needs
the whole that a percentage is of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from ...tiers import ConfigError
from .wording import shown

SIZE_BYTES_MAX = 2**63 - 1  # what a file offset can name

UNITS = {"B": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for base, suffix, letters in ((1000, "B", "kMGTP"), (1024, "iB", "KMGTP"))
    for power, letter in enumerate(letters)
}

HOW_TO_WRITE = 'write bytes (68719476736), a number with a unit ("64GiB", "1.5TB") or a percentage ("80%")'

_UNITS_SHOWN = tuple(sorted((unit for unit in UNITS if "i" in unit), key=UNITS.__getitem__, reverse=True))

NUMBER = r"[0-9]+(?:\.[0-9]+)?"
PATTERN = re.compile(rf"({NUMBER}) ?({'|'.join(UNITS)}|%)")
_LOOSE_PATTERN = re.compile(rf"\s*({NUMBER})\s*([A-Za-z]*)\s*")

# What people write for a unit, lowered, and what they mean by it: memory is counted in powers of two.
_MEANT_UNITS = {unit.lower(): unit for unit in UNITS} | {
    spelling: unit
    for unit in UNITS
    if unit.endswith("iB")
    for spelling in (unit[0].lower(), unit[:2].lower())
}


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of something that only the machine knows: 0% to 100%."""

    value: Decimal

    def __str__(self) -> str:
        return f"{self.value}%"


def parse_size(value: object) -> int | Percent:
    """Read one size.

    Raises:
        ValueError: it is not a size; the message suggests one.
    """
    if isinstance(value, Percent):
        return value
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, float) and value.is_integer() and 0 <= value <= SIZE_BYTES_MAX:
        raise ValueError(f"{shown(value)} is not a whole number of bytes; did you mean {int(value)}?")
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{shown(value)} is not a size; {HOW_TO_WRITE}")
    return _bounded(value, value)


def _parse_text(text: str) -> int | Percent:
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a size; {_meant(text)}")
    number, unit = Decimal(match[1]), match[2]
    if unit != "%":
        return _bounded(int(Fraction(number) * UNITS[unit]), text)
    if number > 100:
        raise ValueError(f'{shown(text)} is more than the whole; did you mean "100%"?')
    return Percent(number)


def _bounded(size: int, written: object) -> int:
    if size > SIZE_BYTES_MAX:
        raise ValueError(f"{shown(written)} is larger than any file can be; {HOW_TO_WRITE}")
    return size


def _meant(text: str) -> str:
    match = _LOOSE_PATTERN.fullmatch(text)
    if match is not None and match[2] == "":
        return f'it has no unit; did you mean "{match[1]}GiB"?'
    unit = None if match is None else _MEANT_UNITS.get(match[2].lower())
    return HOW_TO_WRITE if match is None or unit is None else f'did you mean "{match[1]}{unit}"?'


def parse_option(name: str, text: str) -> int:
    """Read a size from the command line: whole bytes, or a number with a unit.

    Raises:
        ConfigError: it is not such a size; the message names the option.
    """
    try:
        size = parse_size(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise ConfigError(name, str(error)) from error
    if isinstance(size, Percent):
        raise ConfigError(name, f'should be a size like "64MiB", not a percentage like {shown(text)}')
    return size


def size_bytes(size: int | Percent, whole_bytes: int) -> int:
    """`size` in bytes, where 100% is `whole_bytes`; rounded down."""
    return size if isinstance(size, int) else int(Fraction(size.value) * whole_bytes / 100)


def format_size(size_bytes: int) -> str:
    """A size for people, in the spelling that `parse_size` reads; one decimal where it is not whole."""
    unit = next((unit for unit in _UNITS_SHOWN if UNITS[unit] <= size_bytes), "B")
    return f"{round(size_bytes / UNITS[unit], 1):g}{unit}"
