"""Releases what requests hold where vLLM does not report their end: before 0.23.

While a request waits for a chunk, each step of the scheduler asks about it again, or its turn comes. Nobody
asks about an aborted request again. Ending a lease too early costs only time: the request's next lookup takes
its holds again, and a load takes what its lookup has just found.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEASE_S = 30.0  # longer than any load may take, and short beside a server's life


class Leases:
    """Requests that hold something, the one to expire next first. One thread: the scheduler's."""

    def __init__(self, end: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._end = end
        self._clock = clock
        self._heard_s: dict[str, float] = {}

    def renew(self, request: str) -> None:
        """Record that a request was asked about, and end the leases that have expired."""
        now_s = self._clock()
        self._heard_s.pop(request, None)
        self._heard_s[request] = now_s
        while now_s - self._heard_s[oldest := next(iter(self._heard_s))] > LEASE_S:
            del self._heard_s[oldest]
            self._end(oldest)

    def release(self, request: str) -> None:
        """The request holds nothing more."""
        self._heard_s.pop(request, None)
