"""The terms on which a drive may be written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Terms(NamedTuple):
    """What the owner of a drive asks of whoever writes to it.

    Attributes:
        write_budget: how often the capacity may be written a day, by all together; None for any number.
        endurance_bytes: what the drive is rated for, 0 where nobody says.
        clock: the machine's monotonic clock, in seconds.
    """

    write_budget: float | None = None
    endurance_bytes: int = 0
    clock: Callable[[], float] = time.monotonic


NO_TERMS = Terms()
