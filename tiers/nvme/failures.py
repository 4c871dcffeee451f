"""Logs failures: the first, and then at most one line a period."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

LOG_PERIOD_S = 10.0  # between two lines about chunks that failed


class FailureLog:
    """Logs a tier's failures. One event loop."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._logged_s = -LOG_PERIOD_S  # mutable

    def add(self, message: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_PERIOD_S:
            self._logged_s = now_s
            logger.warning("%s: %s", self._tier, message)
