"""The mover: what is asked of all tiers below a chain's slots, and when all movement has come to an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial

from ...tiers.base import ChunkKey, Clears, Invalidates, RemoveReason, Tier, ability
from ...tiers.errors import NotDurable, TierError
from .losses import Caller
from .transfers import Transfers

logger = logging.getLogger(__name__)

MIRROR_S = 1.0  # a flush waits so long for tiers that are behind, once what it flushes is durable in one


class Mover(Transfers):
    """Flushes, removes and invalidates, beside the transfers. All its coroutines run on the loop thread."""

    async def flush(self, caller: Caller | None) -> None:
        """Return when everything that was stored so far is durable in some tier below.

        What a tier chose not to keep is left out. A tier that is behind gets `MIRROR_S` more.

        Args:
            caller: who is told of what was lost; None at the end of the chain, which waits for every tier.

        Raises:
            NotDurable: some chunks are in no tier below, and the caller was not told of these before.
            TierError: a tier failed to make something durable, or is not used any more. Every tier was
                flushed all the same.
        """
        with self._lock:
            number = self._cascades.losses.number
        with self._urgently():
            await self.until(lambda: self._cascades.losses.is_decided(number))
            with suppress(TimeoutError):
                async with asyncio.timeout(None if caller is None else MIRROR_S):
                    await self.drain()
        await self._flush_tiers(caller, number)

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
        for tier in self._lower.tiers:
            try:
                await self._invalidate(tier, reason)
            except Exception:
                logger.exception("%s could not be told to forget its chunks; it is no longer used", tier.name)
                self._lower.stop_using(tier)
                with self._lock:
                    self._cascades.stop_using(tier.name)
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
        removed = [await _error_of(tier, self._remove(tier, keys)) for tier in self._lower.tiers]
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

    async def _flush_tiers(self, caller: Caller | None, number: int) -> None:
        flushed: list[TierError | None] = []
        if not self._stopped:
            tiers = self._lower.tiers
            flushed = await asyncio.gather(*(_error_of(tier, tier.flush()) for tier in tiers))
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


async def _error_of(tier: Tier, work: Awaitable[None]) -> TierError | None:
    try:
        await work
    except TierError as error:
        return error
    except Exception as error:  # a tier of another package may raise anything
        failed = TierError(tier.name, f"it raised {error!r}")
        failed.__cause__ = error
        return failed
    return None
