"""The clock for what is written down: whole seconds since 1970, as far as the format's 32 bits go."""

from __future__ import annotations

import time

TIME_MAX_S = (1 << 32) - 1  # in the year 2106


def now_s() -> int:
    """The time; the nearest one that can be written down where the machine's clock is far off."""
    return min(max(0, int(time.time())), TIME_MAX_S)
