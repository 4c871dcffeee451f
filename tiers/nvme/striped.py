"""Several drives as one tier: each keeps its share of the chunks, so one load reads from all of them.

Theory of operation. A key's hash ranks the drives (`rendezvous`), and the first one in use has the key: no
directory is asked twice. A drive is out while its breaker is open, but for the call that tries it. Until it
is back, its keys go to the next in their rank: what is stored meanwhile is found there, and what the drive
has is a miss. Once it is back, it gets its keys again; what lies on the others of them is out of sight, and
leaves with its segments.

A load or store returns when no drive touches its buffers any more, so one drive that hangs would hold what
the others have brought. `divide` tells callers whose keys are whose, so that they can ask each drive alone.

Its share goes on instead of being dropped, because a prompt is used up to its first missing chunk: with one
of four drives left out, a hit would end after four chunks on average, for as long as the drive is dead.

What concerns every chunk goes to all drives at once. One that fails is told when the others are through; one
that hangs is left behind after a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..base import (
    Buffer,
    ChunkKey,
    Clears,
    CountsUses,
    Failure,
    Invalidates,
    Outcome,
    RemoveReason,
    ReportsRemovals,
    TierStats,
    ability,
)
from ..breaker import Breaker
from ..errors import TierError
from ..settled import settled
from .io.refusal import failure_of
from .rendezvous import Ranking

logger = logging.getLogger(__name__)

ALL_WAIT_S = 30.0  # for one drive, once all others are through: longer than a drive that works ever takes
# How the drives' gauges become the tier's: of each, all that have it.
MEANS: Mapping[str, Callable[[Iterable[float]], float]] = {
    "useful_bytes": sum,
    "durability_period_s": max,
    "direct_io": min,
    "breaker_state": max,
    "written_bytes": sum,
    "written_bytes_a_day": sum,
    "drive_writes_a_day": max,
    "years_left": min,
}


@dataclass(frozen=True, slots=True)
class Drive:
    """One drive of the tier.

    Attributes:
        name: what names it for good: its share of the keys follows from it.
        tier: its store, behind a breaker of its own.
        weight: its share of the chunks, relative to the others'; its capacity.
    """

    name: str
    tier: Breaker
    weight: float


class StripedTier:
    """Chunks over several drives. Threads and cancellation are those of the drives' tiers.

    Every drive has a breaker, so none belongs around the whole: it would give up all drives for one.
    """

    def __init__(self, name: str, drives: Sequence[Drive], *, all_wait_s: float = ALL_WAIT_S) -> None:
        self.name = name
        self._drives = tuple(drives)
        self._ranking = Ranking([drive.name for drive in drives], [drive.weight for drive in drives])
        self._all_wait_s = all_wait_s
        self._counting = [ability(drive.tier, CountsUses) for drive in drives]  # type: ignore[type-abstract]
        # Mutable state, changed on the loop only: drives that could not be told of new weights, for good.
        self._retired: frozenset[int] = frozenset()
        self._left_behind: set[asyncio.Future[None]] = set()

    def rename(self, name: str) -> None:
        """Take the name that the chain gives it, before anybody uses it."""
        self.name = name

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        found: list[bool | None] = [False] * len(keys)
        for number, positions in self._shares(keys).items():
            hits = self._drives[number].tier.lookup([keys[position] for position in positions])
            for position, hit in zip(positions, hits, strict=True):
                found[position] = hit
        return found

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._spread(keys, buffers, lambda drive: drive.tier.store, Failure.DROPPED)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._spread(keys, buffers, lambda drive: drive.tier.load, Failure.MISSING)

    def used(self, keys: Sequence[ChunkKey]) -> None:
        """Tell each drive of the chunks that it would be asked for."""
        for number, positions in self._shares(keys).items():
            counts = self._counting[number]
            if counts is not None:
                counts.used([keys[position] for position in positions])

    def divide(self, keys: Sequence[ChunkKey]) -> Sequence[Sequence[int]]:
        """The positions of the keys by drive, and of those that none in use may have."""
        shares = list(self._shares(keys).values())
        taken = {position for positions in shares for position in positions}
        rest = [position for position in range(len(keys)) if position not in taken]
        return [*shares, rest] if rest else shares

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        """Forget the keys on every drive: each may have got one while another was out.

        Raises:
            TierError: a drive could not, or not in time.
        """
        self._raise_first(await self._of_all(lambda drive: drive.tier.remove(keys, reason)))

    async def flush(self) -> None:
        """Return when everything stored so far is durable on every drive.

        Raises:
            TierError: a drive could not make it so, or not in time; the others did.
        """
        self._raise_first(await self._of_all(lambda drive: drive.tier.flush()))

    async def invalidate(self) -> None:
        """Put everything older out of sight. A drive that cannot be told is used no more.

        Raises:
            TierError: no drive could be told.
        """
        await self._put_out_of_sight(_invalidated)

    async def clear(self) -> None:
        """Forget all chunks on every drive; otherwise as `invalidate`."""
        await self._put_out_of_sight(_cleared)

    async def _put_out_of_sight(self, told: Callable[[Drive], Awaitable[None]]) -> None:
        errors = await self._of_all(told)
        for number, error in errors.items():
            logger.error(
                "%s: %s could not be told to forget its chunks and is used no more: %s. Before the next "
                "start raise weights_epoch, or remove the directory",
                self.name,
                self._drives[number].name,
                error,
            )
        self._retired |= errors.keys()
        if len(errors) == len(self._drives):
            self._raise_first(errors)

    def stats(self) -> TierStats:
        """The drives' numbers added up, and as parts each drive's own, by its name."""
        each = [drive.tier.stats() for drive in self._drives]
        counters: Counter[str] = Counter()
        for stats in each:
            counters.update(stats.counters)
        gauges = {
            name: mean(told)
            for name, mean in MEANS.items()
            if (told := [stats.gauges[name] for stats in each if name in stats.gauges])
        }
        gauges["drives_out"] = sum(not self._is_in_use(number) for number in range(len(each)))
        return TierStats(
            chunks=sum(stats.chunks for stats in each),
            used_bytes=sum(stats.used_bytes for stats in each),
            capacity_bytes=sum(stats.capacity_bytes for stats in each),
            counters=dict(counters),
            gauges=gauges,
            parts={drive.name: stats for drive, stats in zip(self._drives, each, strict=True)},
        )

    def watch(self, report: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        """Report what the drives evict, as far as no other one has it where it is looked for."""
        for drive in self._drives:
            reports = ability(drive.tier, ReportsRemovals)  # type: ignore[type-abstract]
            if reports is not None:
                reports.watch(partial(self._report, report))

    async def close(self) -> None:
        """Close every drive; idempotent. One that hangs is left behind."""
        for number, error in (await self._of_all(lambda drive: drive.tier.close())).items():
            logger.error("%s: close of %s: %s", self.name, self._drives[number].name, error)

    def _report(
        self,
        report: Callable[[Sequence[ChunkKey], RemoveReason], None],
        keys: Sequence[ChunkKey],
        reason: RemoveReason,
    ) -> None:
        gone = [key for key, hit in zip(keys, self.lookup(keys), strict=True) if not hit]
        report(gone, reason)

    # Shares.

    def _is_in_use(self, number: int) -> bool:
        return number not in self._retired and self._drives[number].tier.answers

    def _shares(self, keys: Sequence[ChunkKey]) -> dict[int, list[int]]:
        """The positions of the keys by drive; those that no drive in use may have are in none."""
        in_use: dict[int, bool] = {}
        shares: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            for number in self._ranking.of(key):
                if number not in in_use:
                    in_use[number] = self._is_in_use(number)
                if in_use[number]:
                    shares.setdefault(number, []).append(position)
                    break
        return shares

    async def _spread(
        self,
        keys: Sequence[ChunkKey],
        buffers: Sequence[Buffer],
        call: Callable[
            [Drive], Callable[[Sequence[ChunkKey], Sequence[Buffer]], Coroutine[Any, Any, Outcome]]
        ],
        refusal: Failure,
    ) -> Outcome:
        """Have each drive take its share, all at once. Returns once none of them touches a buffer."""
        shares = self._shares(keys)
        tasks = {
            number: asyncio.ensure_future(
                call(self._drives[number])([keys[i] for i in positions], [buffers[i] for i in positions])
            )
            for number, positions in shares.items()
        }
        failed = dict.fromkeys(keys, refusal)

        def stop() -> None:
            for task in tasks.values():
                task.cancel()

        ended = await settled(asyncio.gather(*tasks.values(), return_exceptions=True), on_cancel=stop)
        for (number, positions), outcome in zip(shares.items(), ended, strict=True):
            for position in positions:
                del failed[keys[position]]
            if isinstance(outcome, BaseException):
                failed.update(self._all_failed([keys[i] for i in positions], number, outcome))
            else:
                failed.update(outcome.failed)
        return Outcome.of(keys, failed)

    def _all_failed(
        self, keys: Sequence[ChunkKey], number: int, error: BaseException
    ) -> Mapping[ChunkKey, Failure]:
        if not isinstance(error, Exception):
            raise error
        if not isinstance(error, (OSError, TierError)):
            logger.error("%s: %s failed", self.name, self._drives[number].name, exc_info=error)
        return dict.fromkeys(keys, failure_of(error))

    # All drives.

    async def _of_all(self, call: Callable[[Drive], Awaitable[None]]) -> dict[int, TierError]:
        """Have every drive do something, all at once; returns what failed or did not end, by drive."""
        tasks = {number: asyncio.ensure_future(call(drive)) for number, drive in enumerate(self._drives)}
        waiting = set(tasks.values())
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=self._all_wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
        finally:
            for task in waiting:  # they hold nothing of the caller's
                self._left_behind.add(task)
                task.add_done_callback(self._forget)
        return {number: error for number, task in tasks.items() if (error := self._error(number, task))}

    def _error(self, number: int, task: asyncio.Future[None]) -> TierError | None:
        name = self._drives[number].name
        if not task.done():
            return TierError(self.name, f"{name} has not answered for {self._all_wait_s:.0f} s")
        error = task.exception()
        if error is None:
            return None
        failed = TierError(self.name, f"{name}: {error}")
        failed.__cause__ = error
        return failed

    def _forget(self, task: asyncio.Future[None]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # seen: it was told that the drive hangs

    def _raise_first(self, errors: Mapping[int, TierError]) -> None:
        for error in errors.values():
            raise error


async def _invalidated(drive: Drive) -> None:
    invalidates = ability(drive.tier, Invalidates)  # type: ignore[type-abstract]
    assert invalidates is not None, "a store on a drive outlives its process"
    await invalidates.invalidate()


async def _cleared(drive: Drive) -> None:
    clears = ability(drive.tier, Clears)  # type: ignore[type-abstract]
    if clears is None:
        await _invalidated(drive)
    else:
        await clears.clear()
