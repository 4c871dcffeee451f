"""Rates, as they are measured: of loads from a tier, and of computing prompts in a server."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Protocol

RECENT_BYTES = 1 << 30  # what a rate remembers: seconds of a fast drive, so that it follows the load on it
KNOWN_FROM_BYTES = 32 << 20  # less than that a drive's cache, or one slow call, may have decided
# Either of these without a pause says how slow a tier is. What is shorter takes about the time of a call,
# whatever its size: 2 MiB at a time come at less than half of the rate of 32.
MEASURED_BYTES = 16 << 20
MEASURED_S = 0.05

STEP_TOKENS_MIN = 256  # fewer take a step no longer than decoding does: they say nothing of computing
RUN_STEPS_MAX = 16  # of a server that computes without a pause: it is measured all the same
RUNS_KEPT = 15  # their median is the rate: steps that compile, or wait for something else, do not move it
RUNS_MIN = 3


class TierRate:
    """Bytes that loads from one tier bring in a second while there are any. The chain's lock guards it.

    However many loads run side by side, it is the time in which at least one runs that counts. A short one by
    itself lowers no rate that is known: it cannot say how slow a tier is.

    Attributes:
        queued_bytes: what is to come from the tier, under way or not begun, without what is late.
        measured_s: when a load that was not too short last ended.
    """

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.measured_s = float("-inf")
        self._bytes = 0.0
        self._busy_s = 0.0
        self._loads = 0  # running now
        self._since_s = 0.0  # from when on the time of those is not yet counted
        self._new_bytes = 0  # brought without a pause since then

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None while it is unknown."""
        is_known = self._bytes >= KNOWN_FROM_BYTES and self._busy_s > 0
        return self._bytes / self._busy_s if is_known else None

    def began(self, now_s: float) -> None:
        """A load from the tier begins."""
        if not self._loads:
            self._since_s, self._new_bytes = now_s, 0
        self._loads += 1

    def ended(self, now_s: float, moved_bytes: int) -> None:
        """A load that began has brought so many bytes."""
        self._loads -= 1
        self._new_bytes += moved_bytes
        new_s, known = now_s - self._since_s, self.bytes_per_s
        is_long = self._new_bytes >= MEASURED_BYTES or new_s >= MEASURED_S
        if is_long or (not self._loads and (known is None or self._new_bytes > known * new_s)):
            self._measured(new_s)
            self._since_s = now_s
        if is_long:
            self.measured_s = now_s

    def doubt(self) -> None:
        """Remember as little as a known rate may: what is measured next counts for more than what was."""
        if self._bytes > KNOWN_FROM_BYTES:
            kept = KNOWN_FROM_BYTES / self._bytes
            self._bytes, self._busy_s = float(KNOWN_FROM_BYTES), self._busy_s * kept

    def _measured(self, new_s: float) -> None:
        kept = max(0.0, 1 - self._new_bytes / RECENT_BYTES)
        self._bytes = self._bytes * kept + self._new_bytes
        self._busy_s = self._busy_s * kept + new_s
        self._new_bytes = 0


class RatedLoad:
    """A load as the rate of its tier counts it: until it ends or is late, as one that never returns may be.

    The chain's lock guards it.
    """

    def __init__(self, rate: TierRate, size_bytes: int, began_s: float) -> None:
        self._rate, self._size_bytes = rate, size_bytes
        self._has_ended = False
        rate.began(began_s)

    def ended(self, now_s: float, moved_bytes: int) -> None:
        """It brought so many bytes, or is waited for no longer; what comes after that does not count."""
        if not self._has_ended:
            self._has_ended = True
            self._rate.queued_bytes -= self._size_bytes
            self._rate.ended(now_s, moved_bytes)


class Prefill(Protocol):
    """How fast prompts are computed."""

    @property
    def tokens_per_s(self) -> float | None:
        """The rate; None while it is unknown."""
        ...


class GivenPrefill:
    """A rate that somebody knows."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s

    @property
    def tokens_per_s(self) -> float:
        return self._tokens_per_s


class MeasuredPrefill:
    """A rate that is measured from the steps of a server: tokens of prompts, and the time they took.

    A server may plan a step while the one before it runs. So the tokens that are planned between the ends of
    two steps are computed by the next end, or by the one after it, and the time of both counts. It is too
    long by one step at most, and the rate too low, which speaks for loading.

    One thread calls it: the scheduler's. Any may read the rate.

    Attributes:
        tokens_per_s: the rate; None while it is unknown.
    """

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        self._planned_tokens = 0  # since the last end of a step
        self._active_s: float | None = None  # since when the server is at work; it may have been idle before
        self._ended_s: float | None = None
        # The run of steps under way, each of which computed enough:
        self._run_tokens = 0
        self._run_s = 0.0
        self._run_steps = 0
        self._rates: deque[float] = deque(maxlen=RUNS_KEPT)

    def active(self, now_s: float) -> None:
        """The server is at work."""
        if self._active_s is None:
            self._active_s = now_s

    def planned(self, tokens: int) -> None:
        """A step is planned that computes so many tokens of prompts."""
        self._planned_tokens += tokens

    def step_ended(self, now_s: float) -> None:
        """A step has ended."""
        began_s = self._active_s if self._active_s is not None else self._ended_s
        took_s = 0.0 if began_s is None else now_s - began_s
        tokens, self._planned_tokens = self._planned_tokens, 0
        self._active_s, self._ended_s = None, now_s
        if self._run_steps:
            self._run_s += took_s
            if tokens < STEP_TOKENS_MIN or self._run_steps == RUN_STEPS_MAX:
                self._end_run()
                return  # what this step computed was part of the run's time: it begins no other
        elif tokens >= STEP_TOKENS_MIN:
            self._run_s = took_s
        if tokens >= STEP_TOKENS_MIN:
            self._run_tokens += tokens
            self._run_steps += 1

    def _end_run(self) -> None:
        if self._run_s > 0:
            self._rates.append(self._run_tokens / self._run_s)
        if len(self._rates) >= RUNS_MIN:
            self.tokens_per_s = median(self._rates)
        self._run_tokens = self._run_steps = 0
        self._run_s = 0.0
