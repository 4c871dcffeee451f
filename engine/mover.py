"""The mover: promotes chunks from the tiers below into slots, and cascades chunks from slots down.

Theory of operation. The placement queues what should move; whoever queues something requests a run of the
mover, under the chain's lock, and sends the wake-up after releasing it. `_pump` runs on the loop thread,
takes what is queued and starts one task for each batch:

    promotion:  tier.load(keys, slots)                        -> READY, or a miss
    cascade:    tier.store(keys, slots), one tier after another -> clean, unpinned

Where a tier has parts (several drives), each part of a batch is a task of its own: a drive that hangs holds
its own share, and no more.

A server's step requests its run for the end of the step: the loop and the drive's threads share the
interpreter with the step and would delay it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any

from ..tiers.base import Buffer, ChunkKey, Divides, Failure, Invalidates, Outcome, RemoveReason, Tier, ability
from ..tiers.errors import TierError
from ..tiers.pinned.slots import Slot, SlotState, SlotTier
from .loop import LoopThread
from .losses import Caller
from .lower import LowerTiers
from .placement import Placement

logger = logging.getLogger(__name__)

AFTER_STEP_S = 0.01  # a scheduler's step that has committed stores has done its own work by then


class Run(enum.IntEnum):
    """Which run of the mover is requested; the mover is woken once until it has run."""

    NONE = 0
    AFTER_STEP = 1
    NOW = 2


class Mover:
    """Moves chunks between the slots of one placement and the tiers below.

    `request`, `request_queued` and `send` may be called from any thread, the first two under `lock`. All
    coroutines run on the loop thread.
    """

    def __init__(
        self,
        placement: Placement,
        lock: threading.Lock,
        pinned: SlotTier,
        lower: LowerTiers,
        loop: LoopThread,
    ) -> None:
        self._placement, self._lock = placement, lock
        self._pinned, self._lower = pinned, lower
        # Under the lock:
        self._requested = Run.NONE
        # On the loop thread only:
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None  # the run after a step
        self._progress = asyncio.Event()  # set and replaced whenever something moved, or a pin was returned
        self._lost: Counter[Failure] = Counter()  # chunks the last tier failed to take since the last flush
        self._stopped = False
        self._wakeup = loop.wakeup(self._woken)

    # --- any thread ---------------------------------------------------------------------------------

    def request(self, run: Run) -> bool:
        """Request a run; returns whether the caller has to `send` the wake-up. Call it under the lock."""
        is_sooner = run > self._requested
        if is_sooner:
            self._requested = run
        return is_sooner

    def request_queued(self) -> bool:
        """Request a run at once if something is queued; returns as `request`."""
        is_queued = self._requested is Run.AFTER_STEP or self._placement.has_promotions
        return is_queued and self.request(Run.NOW)

    def send(self, wakeup: bool) -> None:
        """Wake the loop thread if `wakeup` says so. Call it without the lock."""
        if wakeup:
            self._wakeup.send()

    # --- on the loop thread -------------------------------------------------------------------------

    async def progress(self) -> None:
        """Return when something has moved, or somebody has returned a pin."""
        await self._progress.wait()

    async def flush(self, caller: Caller | None) -> None:
        """Return when everything that was committed and queued so far is durable.

        A chunk that found no place in the queue, or no room under the last tier's cap, is left out.

        Args:
            caller: who is told of what was lost; None at the end of the chain, where nobody is.

        Raises:
            TierError: a tier failed to make something durable, or the last one failed to take some chunks
                since the last flush. Every tier was flushed all the same.
        """
        await self.drain()
        flushed = [await _error_of(tier, tier.flush()) for tier in self._lower.tiers]
        for error in flushed:
            if error is not None:
                raise error
        self._raise_lost()

    async def drain(self) -> None:
        """Return when everything committed so far has been offered to every tier below."""
        await self._offered(self._dirty())

    async def invalidate(self) -> None:
        """Tell the tiers below that the weights changed, then let lookups reach them again.

        A tier that cannot be told is not used any more: it would serve chunks of the old weights.
        """
        for tier in self._lower.tiers:
            try:
                await self._invalidate(tier)
            except Exception:
                logger.exception(
                    "%s could not be told that the weights changed; it is no longer used", tier.name
                )
                self._lower.stop_using(tier)
        with self._lock:
            self._lower.invalidations -= 1
            if not self._lower.tiers:
                self._placement.stop_cascading()
        self._signal()

    async def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Remove chunks from every tier below, once no cascade that began before copies one of them.

        Raises:
            TierError: a tier failed; the tiers below it were asked all the same.
        """
        named = frozenset(keys)
        await self._offered(frozenset(slot for slot in self._dirty() if slot.key in named))
        removed = [await _error_of(tier, self._remove(tier, keys)) for tier in self._lower.tiers]
        for error in removed:
            if error is not None:
                raise error

    async def stop(self) -> None:
        """Stop moving: cancel what runs, drop what is queued, return once nothing touches a slot."""
        with self._lock:
            self._placement.stop_cascading()
        self._stopped = True
        self._pump()  # drops queued promotions and tells those who wait for them
        await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches its `finally`
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _woken(self) -> None:
        if self._requested is Run.NOW:
            self._pump()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(AFTER_STEP_S, self._pump)

    def _pump(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        with self._lock:
            self._requested = Run.NONE
            batches = self._placement.take_batches()
        for tier, slots in batches.promotions:
            for part in _parts([tier], slots):
                if self._stopped:
                    self._end_promotion(tier, part, Outcome())
                else:
                    self._spawn(self._promote(tier, part))
        for slots in batches.cascades:
            parts = [self._spawn(self._cascade(part)) for part in _parts(self._lower.tiers, slots)]
            self._spawn(self._make_room(parts))
        self._signal()

    async def _promote(self, tier: Tier, slots: Sequence[Slot]) -> None:
        outcome, began_s = Outcome(), time.monotonic()
        try:
            outcome = await tier.load([slot.key for slot in slots], self._buffers(slots))
        finally:
            self._end_promotion(tier, slots, outcome)
            self._count("loaded_us", tier.name, _us_since(began_s))
            self._signal()

    async def _make_room(self, parts: Sequence[asyncio.Task[None]]) -> None:
        """Let the next cascade begin once this one is through.

        A part that hangs while others are through, for one drive of several, holds up no other cascade.
        Where no part is through, it is the whole tier that is slow.
        """
        try:
            done, late = await asyncio.wait(parts, timeout=self._placement.load_deadline_s)
            if not done:
                await asyncio.wait(late)
        finally:
            with self._lock:
                self._placement.cascade_ended()
            self._pump()

    def _end_promotion(self, tier: Tier, slots: Sequence[Slot], outcome: Outcome) -> None:
        with self._lock:
            self._placement.promoted(tier, slots, outcome)

    async def _cascade(self, slots: Sequence[Slot]) -> None:
        valid: list[Slot] = []
        outcome, invalidating = Outcome(), False
        try:
            for tier in self._lower.tiers:
                # Asked again for each tier, right before the call: a chunk that was invalidated while it
                # waited must not reach a tier that has started over.
                valid = [slot for slot in slots if slot.state is SlotState.READY]
                began_s, invalidating = time.monotonic(), self._lower.invalidations > 0
                outcome = await tier.store([slot.key for slot in valid], self._buffers(valid))
                with self._lock:
                    self._placement.stored_below(tier, outcome)
                    self._placement.counters["stored_us", tier.name] += _us_since(began_s)
            # What was stored for the new weights before the tier knew of them was dropped by design.
            self._note_lost([] if invalidating else valid, outcome.failed)
        except Exception:
            self._note_lost(slots, dict.fromkeys((slot.key for slot in slots), Failure.IO_ERROR))
            raise
        finally:
            with self._lock:
                self._placement.cascaded(slots)
            self._signal()

    async def _invalidate(self, tier: Tier) -> None:
        invalidates = ability(tier, Invalidates)  # type: ignore[type-abstract]
        if invalidates is None:
            raise TierError(tier.name, "this tier has no `invalidate`, so it cannot forget the old weights")
        chunks = tier.stats().chunks
        await invalidates.invalidate()
        self._count("invalidated_chunks", tier.name, chunks)

    async def _offered(self, slots: frozenset[Slot]) -> None:
        """Return when each of these was offered to every tier below, or dropped."""
        while not slots.isdisjoint(self._dirty()):
            await self.progress()

    async def _remove(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        there: list[ChunkKey] = []
        try:
            there += [key for key, hit in zip(keys, tier.lookup(keys), strict=True) if hit]
        finally:  # a lookup only says what to count
            await tier.remove(keys, RemoveReason.REQUESTED)
        with self._lock:
            self._placement.removed_below(tier.name, there)

    def _note_lost(self, slots: Sequence[Slot], failed: Mapping[ChunkKey, Failure]) -> None:
        """Remember the chunks that the last tier did not take and that still matter, for `flush`."""
        for slot in slots:
            reason = failed.get(slot.key, Failure.NO_SPACE)
            # A full tier chooses what to keep, and a chunk that was invalidated on the way may go.
            if reason is not Failure.NO_SPACE and slot.state is SlotState.READY:
                self._lost[reason] += 1

    def _raise_lost(self) -> None:
        for tier in self._lower.unused:
            raise TierError(tier.name, "it could not be told that the weights changed, and is no longer used")
        lost, self._lost = self._lost, Counter()
        if lost:
            reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
            raise TierError(
                self._lower.all[-1].name,
                f"{lost.total()} chunks that were stored since the last flush are not in it ({reasons})",
            )

    def _signal(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a transfer between tiers failed; its chunks are misses", exc_info=task.exception())

    def _count(self, name: str, tier: str, amount: int) -> None:
        with self._lock:
            self._placement.counters[name, tier] += amount

    def _dirty(self) -> frozenset[Slot]:
        with self._lock:
            return self._placement.dirty

    def _buffers(self, slots: Sequence[Slot]) -> list[Buffer]:
        return [self._pinned.buffer(slot) for slot in slots]


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


def _parts(tiers: Sequence[Tier], slots: Sequence[Slot]) -> list[Sequence[Slot]]:
    """The slots by the part of a tier that has or gets them, where one of the tiers has parts."""
    for tier in tiers:
        divides = ability(tier, Divides)  # type: ignore[type-abstract]
        if divides is not None:
            shares = divides.divide([slot.key for slot in slots])
            return [[slots[position] for position in positions] for positions in shares]
    return [slots]


def _us_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1_000_000)
