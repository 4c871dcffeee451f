"""A circuit breaker around a tier that may fail or hang: while it is open, nothing waits for that tier.

Theory of operation. Every call that reaches the tier is a sample. It is bad if it stood still for longer than
`slow_s`, raised, failed altogether at the device, or gave an answer without sense. After `BAD_CALLS_MAX` of
these in a row the breaker opens, and at once where a call still stands: every lookup misses and every
store is dropped. After a pause it lets one call through as a trial; success closes the breaker, failure
doubles the pause.

A call stands still when nothing has moved since it began. A call in a queue behind others does not stand
still: what ends before it has moved, and some tiers also say what their device moves meanwhile. One that
stood when the breaker opened is left behind: only what comes after it is looked at, so that a call which
never returns does not keep a tier closed that answers others. A drive that answers none would get one more
such call with each trial; so there is a bound to them.

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

from .base import (
    DEVICE_FAILURES,
    Buffer,
    ChunkKey,
    Failure,
    Outcome,
    RemoveReason,
    ReportsProgress,
    Tier,
    TierStats,
    ability,
)
from .errors import TierError

logger = logging.getLogger(__name__)

BAD_CALLS_MAX = 5  # in a row; one bad sector is not a bad drive
PROGRESS_BYTES = 1024 * 1024  # moved at least, in `slow_s`, by a device that is not stuck: one piece
LEFT_BEHIND_MAX = 8  # calls that hang, beyond which nothing is tried: each may hold a thread and buffers
PAUSE_S = 2.0  # after the first opening; a drive that resets itself takes about a second
PAUSE_MAX_S = 60.0  # a drive that came back is noticed within a minute
LOG_EVERY_S = 60.0  # what a tier raises, it may raise at every step of a server

_ANSWERS = frozenset((True, False, None))
_COUNTERS = tuple(f"breaker_{what}_chunks" for what in ("missed", Failure.MISSING, Failure.DROPPED))


class BreakerState(enum.IntEnum):
    CLOSED = 0  # calls go through
    TRYING = 1  # one call goes through
    OPEN = 2  # none does


class _Switch:
    """The state, without a tier. Thread-safe."""

    def __init__(
        self, name: str, slow_s: float, clock: Callable[[], float], moved: Callable[[], int]
    ) -> None:
        self._name = name  # of the tier, for messages
        self._slow_s = slow_s
        self._moved = moved
        self._clock = clock
        self._lock = threading.Lock()
        # Changed under the lock; `answers` looks at the state and at `_sound_until_s` without it:
        self._state = BreakerState.CLOSED
        self._bad_calls = 0
        self._pause_s = PAUSE_S
        self._try_at_s = 0.0
        self._tickets = itertools.count()
        self._under_way: dict[int, float] = {}  # ticket -> when the call began, oldest first
        self._moved_bytes, self._moved_s = 0, -math.inf  # what was moved when we saw progress last
        self._sound_until_s = math.inf  # until then no call under way has stood still for too long
        self._left_behind: set[int] = set()  # tickets of calls that were under way when it opened
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

    def leave(self, ticket: int, *, good: bool | None, has_moved: bool) -> None:
        """A call ended: well, badly, or (None) in a way that says nothing about the tier.

        Args:
            has_moved: whether bytes were stored or loaded: so those behind it in a queue did not stand still.
        """
        with self._lock:
            began_s = self._under_way.pop(ticket, None)
            if began_s is not None:
                if self._stood_s(began_s) > self._slow_s:
                    good = False
                if has_moved:
                    self._moved_s = self._clock()
            self._look_out()
            if began_s is None:  # the breaker has opened meanwhile, and has counted it
                self._left_behind.discard(ticket)
                return
            is_trial = ticket == self._trial
            if is_trial:
                self._trial = None
            if good is None or (self._state is not BreakerState.CLOSED and not is_trial):
                return
            if not good:
                self._count_bad(is_trial=is_trial)
            else:
                self._bad_calls = 0
                if is_trial:
                    self._state, self._pause_s = BreakerState.CLOSED, PAUSE_S
                    logger.warning("%s answers again; it is used again", self._name)

    def failed(self) -> None:
        """A call without a ticket has failed: a lookup, a removal, a flush."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                self._count_bad(is_trial=False)

    def _count_bad(self, *, is_trial: bool) -> None:
        self._bad_calls += 1
        if is_trial or self._bad_calls >= BAD_CALLS_MAX:
            self._open()

    def _may_try(self) -> bool:
        return len(self._left_behind) < LEFT_BEHIND_MAX

    def _stood_s(self, began_s: float) -> float:
        """How long a call that began then has seen nothing move."""
        now_s, moved_bytes = self._clock(), self._moved()
        if moved_bytes - self._moved_bytes >= PROGRESS_BYTES:
            self._moved_bytes, self._moved_s = moved_bytes, now_s
        return now_s - max(began_s, self._moved_s)

    def _goes_through(self) -> bool:
        trying = self._state is BreakerState.TRYING and self._trial is None
        return self._state is BreakerState.CLOSED or trying

    def _look_out(self) -> None:
        began_s = next(iter(self._under_way.values()), math.inf)
        self._sound_until_s = max(began_s, self._moved_s) + self._slow_s

    def _look(self) -> None:
        now_s, hangs = self._clock(), False
        if now_s > self._sound_until_s:
            hangs = self._stood_s(next(iter(self._under_way.values()))) > self._slow_s
            self._look_out()
        if self._state is BreakerState.CLOSED and hangs:
            self._open()
        elif self._state is BreakerState.OPEN and now_s >= self._try_at_s and self._may_try():
            self._state = BreakerState.TRYING
        elif self._state is BreakerState.TRYING and hangs:
            self._open()

    def _open(self) -> None:
        if self._state is BreakerState.TRYING:
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        else:
            self.openings += 1
        self._state, self._bad_calls = BreakerState.OPEN, 0
        self._left_behind.update(self._under_way)
        self._under_way.clear()
        self._trial = None
        self._look_out()
        self._try_at_s = self._clock() + self._pause_s
        logger.warning("%s fails or hangs; it is not used for %.0f s", self._name, self._pause_s)


class Breaker:
    """Passes calls on to a tier until it fails or hangs; then acts as a tier that has and keeps nothing.

    Its name is the tier's, or the one that the chain gives it. Threads and cancellation are the tier's own.
    `remove`, `flush` and `close` always reach the tier, and raise what it raises; nothing else does.
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
        self._reports = ability(tier, ReportsProgress)  # type: ignore[type-abstract]
        self._switch = _Switch(self.name, slow_s, clock, self._moved)
        self._stats = TierStats(0, 0, 0)  # the last ones that the tier could give
        self._log = _Log(self.name, clock)
        # Lookups come from any thread; a lost count is no harm.
        self._counters = Counter(dict.fromkeys(_COUNTERS, 0))

    @property
    def wrapped(self) -> Tier:
        """The tier itself, for abilities beyond the protocol."""
        return self._tier

    @property
    def state(self) -> BreakerState:
        return self._switch.state()

    @property
    def answers(self) -> bool:
        """Whether a call would go through now, be it as a trial."""
        return self._switch.answers()

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        if not self._switch.answers():
            self._counters["breaker_missed_chunks"] += len(keys)
            return [False] * len(keys)
        try:
            found = self._tier.lookup(keys)
            if len(found) != len(keys) or not _ANSWERS.issuperset(found):
                raise ValueError(f"a lookup of {len(keys)} keys answered {found!r:.80}")
        except Exception as error:
            self._has_failed(error)
            self._counters["breaker_missed_chunks"] += len(keys)
            return [False] * len(keys)
        return found

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._guarded(lambda: self._tier.store(keys, buffers), keys, Failure.DROPPED)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._guarded(lambda: self._tier.load(keys, buffers), keys, Failure.MISSING)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await self._passed_on(self._tier.remove(keys, reason))

    async def flush(self) -> None:
        await self._passed_on(self._tier.flush())

    def stats(self) -> TierStats:
        try:
            stats = self._stats = self._tier.stats()
        except Exception as error:
            self._log.error(error)
            stats = self._stats
        own = {"breaker_openings": self._switch.openings, **self._counters}
        gauges = {**stats.gauges, "breaker_state": int(self.state)}
        return replace(stats, counters={**stats.counters, **own}, gauges=gauges)

    async def close(self) -> None:
        await self._tier.close()

    def _moved(self) -> int:
        try:
            return 0 if self._reports is None else self._reports.moved_bytes
        except Exception as error:
            self._log.error(error)
            return 0

    def _has_failed(self, error: Exception) -> None:
        self._switch.failed()
        self._log.error(error)

    async def _passed_on(self, call: Awaitable[None]) -> None:
        """A call that always reaches the tier, and whose caller must learn that it failed."""
        try:
            await call
        except Exception:
            self._switch.failed()
            raise

    async def _guarded(
        self, call: Callable[[], Awaitable[Outcome]], keys: Sequence[ChunkKey], refusal: Failure
    ) -> Outcome:
        if not keys:
            return await call()
        ticket = self._switch.enter()
        if ticket is None:
            self._counters[f"breaker_{refusal}_chunks"] += len(keys)
            return Outcome(failed=dict.fromkeys(keys, refusal))
        good: bool | None = None
        outcome = Outcome()
        try:
            outcome = _checked(await call(), keys)
            if outcome.is_sample:
                # Some came: then it is a bad place on the drive, and not the drive.
                good = bool(outcome.succeeded) or DEVICE_FAILURES.isdisjoint(outcome.failed.values())
        except Exception as error:
            good = False
            self._log.error(error)
            why = error.failure if isinstance(error, TierError) else Failure.IO_ERROR
            outcome = Outcome(failed=dict.fromkeys(keys, why))
        finally:
            self._switch.leave(ticket, good=good, has_moved=bool(outcome.succeeded))
        return outcome


class _Log:
    """Says what a tier raises where it must not, once in a while. A line lost between threads is no harm."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name, self._clock = name, clock
        self._said_s = -math.inf
        self._unsaid = 0

    def error(self, error: Exception) -> None:
        now_s = self._clock()
        if now_s - self._said_s < LOG_EVERY_S:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        self._said_s, self._unsaid = now_s, 0
        logger.error("%s raises, which counts as a miss or a failure%s", self._name, more, exc_info=error)


def _checked(outcome: Outcome, keys: Sequence[ChunkKey]) -> Outcome:
    """The outcome, if it tells of each key once and of no other."""
    told = (*outcome.succeeded, *outcome.failed)
    if len(told) != len(keys) or set(told) != set(keys):
        raise ValueError(f"a call with {len(keys)} keys answered {outcome!r:.200}")
    return outcome
