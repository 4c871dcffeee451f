"""Ages as users write and read them: `90s`, `15m`, `12h`, `7d`."""

from __future__ import annotations

import re

from ...tiers import ConfigError

AGE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_age(text: str, option: str) -> float:
    """Read an age in seconds.

    Raises:
        ConfigError: it is none; names `option`.
    """
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ConfigError(
            option, f'should be a number with the unit s, m, h or d, not "{text}"; for example 7d'
        )
    return float(match[1]) * AGE_UNITS_S[match[2]]


def format_age(seconds: float) -> str:
    """An age for people, in the largest unit that it fills."""
    for unit in ("d", "h", "m"):
        if seconds >= AGE_UNITS_S[unit]:
            return f"{seconds / AGE_UNITS_S[unit]:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
