"""Syncs of the drive, counted, timed and made slower."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Syncs:
    """Runs syncs, each of them so much slower than the drive is. Any thread may call `run`.

    Attributes:
        took_s: what each sync has taken, the delay included, since `clear`.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self.took_s: list[float] = []

    def clear(self) -> None:
        self.took_s = []

    def run(self, sync: Callable[..., None], *arguments: Any) -> None:
        began_s = time.perf_counter()
        sync(*arguments)
        if self._delay_s:
            time.sleep(self._delay_s)
        self.took_s.append(time.perf_counter() - began_s)


def skip(sync: Callable[..., None], *arguments: Any) -> None:
    """In place of `Syncs.run`: no sync at all."""
