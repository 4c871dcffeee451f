"""A circuit breaker around a tier that may fail or hang: while it is open, nothing waits for that tier.

Theory of operation. Every call that reaches the tier is a sample. It is bad if it took longer than `slow_s`,
has not returned after that time, or failed altogether at the device. After `BAD_CALLS_MAX` bad samples in a
row the breaker opens: every lookup misses and every store is dropped, at once. After a pause it lets one
call through as a trial; success closes the breaker, failure doubles the pause.

    CLOSED --bad calls in a row, or one that hangs--> OPEN --pause over--> TRYING --good--> CLOSED
                                                       ^------------bad------'

The pattern is Michael Nygard's circuit breaker ("Release It!", 2007).
"""

from __future__ import annotations

import enum
import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from .base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats

logger = logging.getLogger(__name__)

BAD_CALLS_MAX = 5  # in a row; one bad sector is not a bad drive
PAUSE_S = 2.0  # after the first opening; a drive that resets itself takes about a second
PAUSE_MAX_S = 60.0  # a drive that came back is noticed within a minute


_COUNTERS = tuple(f"breaker_{what}_chunks" for what in ("missed", Failure.MISSING, Failure.DROPPED))


class BreakerState(enum.IntEnum):
    CLOSED = 0  # calls go through
    TRYING = 1  # one call goes through
    OPEN = 2  # none does


class _Switch:
    """The state, without a tier. Thread-safe."""

    def __init__(self, name: str, slow_s: float, clock: Callable[[], float]) -> None:
        self._name = name  # of the tier, for messages
        self._slow_s = slow_s
        self._clock = clock
        self._lock = threading.Lock()
        # Changed under the lock; `answers` looks at the state and at `_sound_until_s` without it:
        self._state = BreakerState.CLOSED
        self._bad_calls = 0
        self._pause_s = PAUSE_S
        self._try_at_s = 0.0
        self._tickets = itertools.count()
        self._under_way: dict[int, float] = {}  # ticket -> when the call began, oldest first
        self._sound_until_s = math.inf  # until then no call under way has taken too long
        self._trial: int | None = None
        self.openings = 0

    def state(self) -> BreakerState:
        with self._lock:
            self._look()
            return self._state

    def answers(self) -> bool:
        """Say whether a lookup may answer hits: a call would go through."""
        if self._state is BreakerState.CLOSED and self._clock() <= self._sound_until_s:
            return True  # without the lock: a server asks some hundred times in a step
        with self._lock:
            self._look()
            return self._goes_through()

    def enter(self) -> int | None:
        """Let a call through, with a ticket, or not."""
        with self._lock:
            self._look()
            if not self._goes_through():
                return None
            ticket = next(self._tickets)
            if self._state is BreakerState.TRYING:
                self._trial = ticket
            self._under_way[ticket] = self._clock()
            self._look_out()
            return ticket

    def leave(self, ticket: int, *, good: bool | None) -> None:
        """A call ended: well, badly, or (None) in a way that says nothing about the tier."""
        with self._lock:
            began_s = self._under_way.pop(ticket)
            self._look_out()
            is_trial = ticket == self._trial
            if is_trial:
                self._trial = None
            if self._clock() - began_s > self._slow_s:
                good = False
            if good is None or (self._state is not BreakerState.CLOSED and not is_trial):
                return
            if not good:
                self._bad_calls += 1
                if is_trial or self._bad_calls >= BAD_CALLS_MAX:
                    self._open()
            else:
                self._bad_calls = 0
                if is_trial:
                    self._state, self._pause_s = BreakerState.CLOSED, PAUSE_S
                    logger.warning("%s answers again; it is used again", self._name)

    def _goes_through(self) -> bool:
        trying = self._state is BreakerState.TRYING and self._trial is None
        return self._state is BreakerState.CLOSED or trying

    def _look_out(self) -> None:
        self._sound_until_s = next(iter(self._under_way.values()), math.inf) + self._slow_s

    def _look(self) -> None:
        now_s = self._clock()
        hangs = now_s > self._sound_until_s
        if self._state is BreakerState.CLOSED and hangs:
            self._open()
        elif self._state is BreakerState.OPEN and now_s >= self._try_at_s and not hangs:
            self._state = BreakerState.TRYING
        elif self._state is BreakerState.TRYING and hangs:
            self._open()

    def _open(self) -> None:
        if self._state is BreakerState.TRYING:
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        else:
            self.openings += 1
        self._state, self._bad_calls = BreakerState.OPEN, 0
        self._try_at_s = self._clock() + self._pause_s
        logger.warning("%s fails or hangs; it is not used for %.0f s", self._name, self._pause_s)


class Breaker:
    """Passes calls on to a tier until it fails or hangs; then acts as a tier that has and keeps nothing.

    Its name is the tier's, or the one that the chain gives it. Threads and cancellation are the tier's own.
    `remove`, `flush` and `close` always reach the tier.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        slow_s: float,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name or tier.name
        self._tier = tier
        self._switch = _Switch(self.name, slow_s, clock)
        # Lookups come from any thread; a lost count is no harm.
        self._counters = Counter(dict.fromkeys(_COUNTERS, 0))

    @property
    def wrapped(self) -> Tier:
        """The tier itself, for abilities beyond the protocol."""
        return self._tier

    @property
    def state(self) -> BreakerState:
        return self._switch.state()

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        if not self._switch.answers():
            self._counters["breaker_missed_chunks"] += len(keys)
            return [False] * len(keys)
        return self._tier.lookup(keys)

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._guarded(lambda: self._tier.store(keys, buffers), keys, Failure.DROPPED)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._guarded(lambda: self._tier.load(keys, buffers), keys, Failure.MISSING)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await self._tier.remove(keys, reason)

    async def flush(self) -> None:
        await self._tier.flush()

    def stats(self) -> TierStats:
        stats = self._tier.stats()
        own = {"breaker_openings": self._switch.openings, **self._counters}
        gauges = {**stats.gauges, "breaker_state": int(self.state)}
        return replace(stats, counters={**stats.counters, **own}, gauges=gauges)

    async def close(self) -> None:
        await self._tier.close()

    async def _guarded(
        self, call: Callable[[], Awaitable[Outcome]], keys: Sequence[ChunkKey], refusal: Failure
    ) -> Outcome:
        ticket = self._switch.enter() if keys else None
        if ticket is None and keys:
            self._counters[f"breaker_{refusal}_chunks"] += len(keys)
            return Outcome(failed=dict.fromkeys(keys, refusal))
        good: bool | None = None
        try:
            outcome = await call()
            # Some came: then it is a bad place on the drive, and not the drive.
            good = bool(outcome.succeeded) or Failure.IO_ERROR not in outcome.failed.values()
        except OSError:
            good = False
            raise
        finally:
            if ticket is not None:
                self._switch.leave(ticket, good=good)
        return outcome
