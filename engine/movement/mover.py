"""The mover: what is asked of all tiers below a chain's slots, and when all movement has come to an end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from ...tiers.base import ChunkKey, Clears, Invalidates, RemoveReason, Tier, ability
from ...tiers.errors import NotDurable, TierError
from ...tiers.pinned.slots import SlotTier
from ..bounded import returned
from ..loop import LoopThread
from .flushing import TierFlush, error_of
from .losses import Caller, Undecided
from .lower import LowerTiers
from .placement import Placement
from .transfers import Transfers

logger = logging.getLogger(__name__)

MIRROR_S = 1.0  # a flush waits so long for tiers that are behind, once what it flushes is durable in one
STILL_S = 60.0  # in which a tier that does not hang has taken a batch, at 1 MiB/s, or has synced what it has
INVALIDATE_S = 30.0  # lookups miss meanwhile, in every tier; a drive's index is waited for 3 s at most


class Mover(Transfers):
    """Flushes, removes and invalidates, beside the transfers. All its coroutines run on the loop thread."""

    def __init__(
        self,
        placement: Placement,
        lock: threading.Lock,
        pinned: SlotTier,
        lower: LowerTiers,
        loop: LoopThread,
    ) -> None:
        super().__init__(placement, lock, pinned, lower, loop)
        self._flushes = [TierFlush(tier) for tier in lower.all]

    async def flush(self, caller: Caller | None) -> None:
        """Return when everything that was stored so far is durable in some tier below.

        What a tier chose not to keep is left out. A tier that is behind gets `MIRROR_S` more. One that hangs
        is not waited for without end: for `STILL_S` after it has last taken something, and as long again to
        make that durable.

        Args:
            caller: who is told of what was lost; None at the end of the chain, which waits for every tier.

        Raises:
            NotDurable: some chunks are in no tier below, and the caller was not told of these before.
            TierError: a tier failed to make something durable, hangs, or is not used any more. Every tier was
                flushed all the same.
        """
        with self._lock:
            losses = self._cascades.losses
            number = losses.number
        with self._urgently():
            await self._until_still(lambda: losses.is_decided(number), lambda: losses.open_of(number).chunks)
            with self._lock:
                hanging = losses.open_of(number)
            if not hanging.chunks:
                await self._mirrored(MIRROR_S if caller is not None else None)
        await self._flush_tiers(caller, number, hanging)

    async def drain(self) -> None:
        """Return when every tier below was offered everything that it is owed by now."""
        with self._lock:
            numbers = self._cascades.numbers
        with self._urgently():
            await self.until(lambda: self._cascades.has_offered(numbers))

    async def invalidate(self, reason: RemoveReason) -> None:
        """Tell the tiers below to forget their chunks, then let lookups reach them again.

        A tier that cannot be told is not used any more: it would serve chunks of the old weights.
        """
        tiers = self._lower.tiers
        errors = await asyncio.gather(
            *(returned(self._invalidate(tier, reason), INVALIDATE_S) for tier in tiers),
            return_exceptions=True,
        )
        for tier, error in zip(tiers, errors, strict=True):
            if error is not None:
                self._cannot_forget(tier, error)
        with self._lock:
            self._lower.invalidations -= 1
        self._pump()

    async def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Remove chunks from every tier below, once none is on its way there from before the call.

        Raises:
            TierError: a tier failed; the tiers below it were asked all the same.
        """
        named = frozenset(keys)
        await self.until(lambda: not self._cascades.is_leaving(named))
        removed = [await error_of(tier, self._remove(tier, keys)) for tier in self._lower.tiers]
        for error in removed:
            if error is not None:
                raise error

    async def stop(self) -> None:
        """Stop moving: cancel what runs, drop what is queued, return once nothing touches a slot."""
        with self._lock:
            self._cascades.give_up()  # first: who waits for a flush is told that it is lost
        self._stopped = True
        self._pump()  # drops queued promotions and tells those who wait for them
        await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches its `finally`
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._retry is not None:
            self._retry.cancel()

    async def end_flushes(self) -> None:
        """Cancel what still makes a tier durable; returns once that has ended."""
        await asyncio.gather(*(flush.end() for flush in self._flushes))

    async def _mirrored(self, limit_s: float | None) -> None:
        """Wait for tiers that are behind; without a limit, for as long as they take something."""
        cascades = self._cascades
        with self._lock:
            has_offered = partial(cascades.has_offered, cascades.numbers)
        if limit_s is not None:
            await self.until(has_offered, limit_s)
        else:
            await self._until_still(has_offered, lambda: sum(cascades.pending.values()))

    async def _until_still(self, is_so: Callable[[], bool], left: Callable[[], int]) -> None:
        """Wait until `is_so()`, for as long as what is `left` gets less; both are asked under the lock."""
        with self._lock:
            before = left()
        while not await self.until(is_so, STILL_S):
            with self._lock:
                now = left()
            if now >= before:
                return
            before = now

    async def _flush_tiers(self, caller: Caller | None, number: int, hanging: Undecided) -> None:
        flushed: list[TierError | None] = []
        if not self._stopped:
            flushes = [flush for flush in self._flushes if flush.tier in self._lower.tiers]
            flushed = await asyncio.gather(*(flush.error(STILL_S) for flush in flushes))
        if hanging.chunks:
            names = [tier.name for index, tier in enumerate(self._lower.all) if hanging.tiers >> index & 1]
            why = f"{hanging.chunks} chunks are on their way, and none has arrived for {STILL_S:g} s"
            raise TierError(" and ".join(names), why)
        for error in flushed:
            if error is not None:
                raise error
        for tier in self._lower.unused:
            raise TierError(tier.name, "it could not be told to forget its chunks, and is no longer used")
        with self._lock:
            told = self._cascades.losses.owed_to(caller, number)
        if told.reasons:
            last = max((loss.tier for loss in told.losses.values()), default=len(self._lower.all) - 1)
            raise NotDurable(
                self._lower.all[last].name, told.losses, told.reasons, partial(self._told, caller, number)
            )
        self._told(caller, number)

    def _told(self, caller: Caller | None, number: int) -> None:
        with self._lock:
            self._cascades.losses.told(caller, number)

    def _cannot_forget(self, tier: Tier, error: BaseException) -> None:
        """Use a tier no more that could not be told to forget its chunks."""
        text = "%s could not be told to forget its chunks; it is no longer used"
        logger.error(text, tier.name, exc_info=error)
        self._lower.stop_using(tier)
        with self._lock:
            self._cascades.stop_using(tier.name)

    async def _invalidate(self, tier: Tier, reason: RemoveReason) -> None:
        invalidates = ability(tier, Invalidates)  # type: ignore[type-abstract]
        if invalidates is None:
            raise TierError(tier.name, "this tier has no `invalidate`, so it cannot forget the old weights")
        clears = ability(tier, Clears)  # type: ignore[type-abstract]
        chunks = tier.stats().chunks
        if reason is RemoveReason.REQUESTED and clears is not None:
            await clears.clear()
        else:
            await invalidates.invalidate()
        self._count("invalidated_chunks", tier.name, chunks)

    async def _remove(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        there: list[ChunkKey] = []
        try:
            there += [key for key, hit in zip(keys, tier.lookup(keys), strict=True) if hit]
        finally:  # a lookup only says what to count
            await tier.remove(keys, RemoveReason.REQUESTED)
        with self._lock:
            self._placement.removed_below(tier.name, there)
