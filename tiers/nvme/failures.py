"""Logs failures: the first, and then at most one line a period."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LOG_PERIOD_S = 10.0  # between two lines about failures of one tier, so of one path


class FailureLog:
    """Logs a tier's failures. Any thread.

    Those that nobody foresaw are logged with their traceback, and have a period of their own.
    """

    def __init__(self, tier: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier, self._clock = tier, clock
        self._lock = threading.Lock()
        # Mutable state, under the lock, by whether it was foreseen: when a line was logged, and what was not.
        self._logged_s = {True: -LOG_PERIOD_S, False: -LOG_PERIOD_S}
        self._unlogged_count = {True: 0, False: 0}

    def add(self, message: str) -> None:
        """Log what the world has refused."""
        line = self._line(message, foreseen=True)
        if line is not None:
            logger.warning("%s: %s", self._tier, line)

    def add_bug(self, message: str, error: BaseException) -> None:
        """Log an error that should not be, with its traceback."""
        line = self._line(f"{message}: {error!r}", foreseen=False)
        if line is not None:
            logger.error("%s: %s", self._tier, line, exc_info=error)

    def _line(self, message: str, *, foreseen: bool) -> str | None:
        with self._lock:
            now_s, unlogged_count = self._clock(), self._unlogged_count[foreseen]
            if now_s - self._logged_s[foreseen] < LOG_PERIOD_S:
                self._unlogged_count[foreseen] += 1
                return None
            self._logged_s[foreseen], self._unlogged_count[foreseen] = now_s, 0
        message = message.removeprefix(f"{self._tier}: ")
        return f"{message} (and {unlogged_count} more before it)" if unlogged_count else message
