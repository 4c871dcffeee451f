"""The queue of one tier below: which chunks it is owed, which are on their way, and what comes of them.

A key is in one of three places:

    fresh --take--> moving --settle--> stored, declined or lost
                     |  ^
              failed |  | take, after a pause
                     v  |
                    again

`fresh` was never tried since it was owed, `again` has failed at least once. A tier that fails gets one chunk
after a pause, which doubles with each failure; the others follow when it has taken that. Nothing here waits
or knows a byte, and the clock comes in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...tiers.base import ChunkKey, Failure, Outcome

BATCH_BYTES = 64 << 20  # one call: fills a drive's queue, and small enough to show progress
CALLS_IN_FLIGHT_MAX = 4  # by tier: they keep a drive busy, and small batches wait and become one large one
WAITING_BYTES_MAX = 64 << 30  # by tier: what a far tier is behind; it is keys, and bytes only where they lie
WAITING_CHUNKS_MAX = 1 << 18  # the same in keys of about 200 bytes
ARENA_SHARE = 4  # of the slots: so many at most are on their way to one tier, also where it hangs
PAUSE_S = 1.0  # after the first failure
PAUSE_MAX_S = 30.0  # a tier that is well again is noticed within half a minute

_FINAL = frozenset({Failure.INDEX_FULL, Failure.MISSING, Failure.CORRUPT, Failure.CLOSED})
"""Failures that another try does not mend: the tier has no place, its source is gone, or the tier is."""


class Limits(NamedTuple):
    """The bounds of one queue, in chunks."""

    batch_chunks: int
    in_flight_chunks: int
    waiting_chunks: int

    @staticmethod
    def of(chunk_bytes: int, slots_count: int, batch_bytes: int) -> Limits:
        """What the bounds in bytes come to: at least one chunk each."""
        in_flight_chunks = min(CALLS_IN_FLIGHT_MAX * batch_bytes // chunk_bytes, slots_count // ARENA_SHARE)
        batch_chunks = min(batch_bytes // chunk_bytes, in_flight_chunks // 2)
        waiting_chunks = min(WAITING_BYTES_MAX // chunk_bytes, WAITING_CHUNKS_MAX)
        return Limits(max(1, batch_chunks), max(1, in_flight_chunks), max(1, waiting_chunks))


@dataclass(slots=True)
class _Moving:
    """A chunk on its way.

    Attributes:
        number: when it was owed.
        has_failed: whether it failed before.
        is_forgotten: whether its result is of no interest any more.
        has_left: whether the tier reported meanwhile that it has removed the chunk.
    """

    number: int
    has_failed: bool
    is_forgotten: bool = False
    has_left: bool = False


class Settled(NamedTuple):
    """What became of a batch. Chunks that failed before and did again are in none of these.

    Attributes:
        stored: the tier has them.
        declined: the tier chose not to take them, or has removed them already.
        failed: why each other one failed; some of them are tried again.
    """

    stored: list[ChunkKey]
    declined: list[ChunkKey]
    failed: dict[ChunkKey, Failure]


class TierQueue:
    """What one tier below is owed and what is on its way to it. Pure; its owner holds a lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Mutable state; each method changes it in one go.
        self._fresh: OrderedDict[ChunkKey, int] = OrderedDict()  # key -> number, which rises
        self._again: OrderedDict[ChunkKey, int] = OrderedDict()
        self._moving: dict[ChunkKey, _Moving] = {}
        self._calls = self._chunks_in_flight = 0
        self._pause_s = PAUSE_S
        self._retry_at_s = 0.0
        self.is_failing = False  # nothing of the last call was taken, or it is overdue
        self.number = 0  # of what was owed last

    def __contains__(self, key: ChunkKey) -> bool:
        """Whether the chunk waits, or is on its way."""
        moving = self._moving.get(key)
        return key in self._fresh or key in self._again or (moving is not None and not moving.is_forgotten)

    @property
    def pending_count(self) -> int:
        """Chunks that the tier does not have yet, as far as we know."""
        moving = sum(not one.is_forgotten for one in self._moving.values())
        return len(self._fresh) + len(self._again) + moving

    @property
    def retry_at_s(self) -> float | None:
        """When something that waits now may move without another event; None where nothing does.

        Nor where a call has to end first, which is an event: it may hang for long.
        """
        waits = self._again or (self._fresh and self.is_failing)
        is_held_up = self._is_full or (self.is_failing and self._calls)
        return self._retry_at_s if waits and not is_held_up else None

    @property
    def may_move(self) -> bool:
        """Whether chunks wait that may move at once, where there is room."""
        return bool(self._fresh) and not self.is_failing

    @property
    def _is_full(self) -> bool:
        """Whether enough is on its way."""
        is_full = self._chunks_in_flight >= self._limits.in_flight_chunks and self._calls > 0
        return is_full or self._calls >= CALLS_IN_FLIGHT_MAX

    def waits(self, key: ChunkKey) -> bool:
        """Whether the chunk waits and never failed."""
        return key in self._fresh

    def owe(self, keys: Iterable[ChunkKey]) -> list[ChunkKey]:
        """Note that the tier is owed chunks; one on its way stays there. Returns those that may not wait."""
        fresh, again, moving = self._fresh, self._again, self._moving
        room = self._limits.waiting_chunks - len(fresh) - len(again)
        left_out: list[ChunkKey] = []
        for key in keys:
            if key in fresh or (key in moving and not moving[key].is_forgotten):
                continue
            if key in again:
                del again[key]
                room += 1
            if room <= 0:
                left_out.append(key)
                continue
            room -= 1
            self.number += 1
            fresh[key] = self.number
        return left_out

    def take(self, now_s: float, *, is_urgent: bool) -> list[ChunkKey]:
        """Take one batch, oldest first; nothing while enough is on its way, or the tier is given a pause.

        Args:
            is_urgent: try each chunk once, pause or not.
        """
        if self._is_full:
            return []
        room = self._limits.in_flight_chunks - self._chunks_in_flight
        is_paused = now_s < self._retry_at_s
        count = max(1, min(room, self._limits.batch_chunks))
        if self.is_failing and not is_urgent:
            if is_paused or self._calls:
                return []
            count = 1
        batch = self._taken(self._fresh, count, has_failed=False)
        if not is_paused:
            batch += self._taken(self._again, count - len(batch), has_failed=True)
        if batch:
            self._calls += 1
            self._chunks_in_flight += len(batch)
        return batch

    def wanted(self, keys: Iterable[ChunkKey]) -> list[ChunkKey]:
        """Those of a batch that have not been forgotten since it was taken."""
        return [key for key in keys if not self._moving[key].is_forgotten]

    def settle(self, keys: Sequence[ChunkKey], outcome: Outcome, now_s: float) -> Settled:
        """A batch, or a part of one, has come back."""
        settled = Settled([], [], {})
        succeeded = frozenset(outcome.succeeded)
        failures = 0
        for key in keys:
            moving = self._moving.pop(key)
            reason = None if key in succeeded else outcome.failed.get(key, Failure.IO_ERROR)
            if moving.is_forgotten:
                continue
            if reason is None and not moving.has_left:
                settled.stored.append(key)
            elif reason is None or reason is Failure.NO_SPACE:
                settled.declined.append(key)
            elif reason in _FINAL:
                settled.failed[key] = reason
            else:
                failures += 1
                self._again[key] = moving.number
                if not moving.has_failed:
                    settled.failed[key] = reason
        self._note(failures, answered=bool(settled.stored or settled.declined), now_s=now_s)
        return settled

    def ended(self, count: int) -> None:
        """A batch of `count` chunks makes room for the next one; parts of it may still hang."""
        self._calls -= 1
        self._chunks_in_flight -= count

    def is_overdue(self) -> None:
        """The tier has answered nothing for too long."""
        self.is_failing = True

    def drop(self, key: ChunkKey) -> bool:
        """Drop a chunk that waits; returns whether it was one that never failed."""
        self._again.pop(key, None)
        return self._fresh.pop(key, None) is not None

    def forget(self, key: ChunkKey) -> None:
        """The chunk is of no interest any more, wherever it is."""
        self.drop(key)
        if key in self._moving:
            self._moving[key].is_forgotten = True

    def forget_all(self) -> None:
        self._fresh.clear()
        self._again.clear()
        for moving in self._moving.values():
            moving.is_forgotten = True

    def left(self, key: ChunkKey) -> None:
        """The tier says that it has removed the chunk: what is on its way may be what left."""
        if key in self._moving:
            self._moving[key].has_left = True

    def has_offered(self, number: int) -> bool:
        """Whether everything that was owed up to `number` has been tried."""
        first = next(iter(self._fresh.values()), number + 1)
        return first > number and all(moving.number > number for moving in self._moving.values())

    def is_leaving(self, keys: Collection[ChunkKey]) -> bool:
        """Whether one of these was forgotten while it was on its way, and still is."""
        return any(key in self._moving and self._moving[key].is_forgotten for key in keys)

    def check(self) -> None:
        """Assert integrity; for tests."""
        assert not self._fresh.keys() & self._again.keys(), "a chunk waits once"
        waiting = [*self._fresh, *self._again]
        assert all(self._moving[key].is_forgotten for key in waiting if key in self._moving)
        assert len(waiting) <= self._limits.waiting_chunks
        numbers = list(self._fresh.values())
        assert numbers == sorted(numbers), "what was owed first moves first"
        assert self._calls <= CALLS_IN_FLIGHT_MAX
        assert self._chunks_in_flight <= max(self._limits.in_flight_chunks, 1)

    def _taken(self, waiting: OrderedDict[ChunkKey, int], count: int, *, has_failed: bool) -> list[ChunkKey]:
        batch: list[ChunkKey] = []
        for key in waiting:
            if len(batch) >= count:
                break
            if key not in self._moving:  # else a forgotten one is still on its way
                batch.append(key)
        for key in batch:
            self._moving[key] = _Moving(waiting.pop(key), has_failed)
        return batch

    def _note(self, failures: int, *, answered: bool, now_s: float) -> None:
        """Learn from a call whether the tier needs a pause."""
        if answered:
            self.is_failing, self._pause_s = False, PAUSE_S
            self._retry_at_s = min(self._retry_at_s, now_s + PAUSE_S)
        if failures:
            self.is_failing = not answered
        if failures and now_s >= self._retry_at_s:  # others that fail in the same pause say nothing new
            self._retry_at_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
