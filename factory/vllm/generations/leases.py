"""Ends what requests hold where the server does not say that a request has ended: before vLLM 0.23.

A request that waits for a chunk is asked about again in each of the scheduler's steps, or once it is its
turn; one that was aborted is never asked about again. Ending a lease too early costs nothing but time: the
request's next lookup takes its holds anew, and a load takes what its lookup has just found.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEASE_S = 30.0  # longer than any load may take, and short beside a server's life


class Leases:
    """Requests that hold something, the least recently heard of first. One thread: the scheduler's."""

    def __init__(self, end: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._end = end
        self._clock = clock
        self._heard_s: dict[str, float] = {}

    def renew(self, request: str) -> None:
        """Note that a request was asked about; ends those that were not for a while."""
        now_s = self._clock()
        self._heard_s.pop(request, None)
        self._heard_s[request] = now_s
        while now_s - self._heard_s[oldest := next(iter(self._heard_s))] > LEASE_S:
            del self._heard_s[oldest]
            self._end(oldest)

    def release(self, request: str) -> None:
        """Forget a request that holds nothing more."""
        self._heard_s.pop(request, None)
