"""Keeps vLLM from logging each store that finds no room: it would be a line a request a step."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable

LINE_EVERY_S = 60.0

_CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector"
_LINE = "cannot store"  # in every release that says it; blocks or chunks


class RefusalFilter(logging.Filter):
    """Lets one line of a refused store through in each minute, and every other line.

    A refused store is nothing to act upon: it is offered again, and metrics count what came to nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if _LINE not in str(record.msg):
            return True
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + LINE_EVERY_S
        return True


def refusal_logger() -> logging.Logger | None:
    """The logger of vLLM's scheduler of stores; None where this process has none."""
    # It is there before any spec is made. Which module defines it, releases differ in.
    scheduler = getattr(sys.modules.get(_CONNECTOR), "OffloadingConnectorScheduler", None)
    return None if scheduler is None else logging.getLogger(scheduler.__module__)
