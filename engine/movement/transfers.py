"""Transfers between slots and the tiers below: promotions into slots, and cascades down.

Theory of operation. The placement queues what should move; whoever queues something requests a run of the
transfers, under the chain's lock, and sends the wake-up after releasing it. `_pump` runs on the loop thread,
takes what is queued and starts tasks of its own for each batch:

    promotion:  tier.load(keys, slots)            -> READY, or a miss
    cascade:    tier.store(keys, slots)           -> the tier has it, or is tried again, or it is lost
    relay:      above.load, then tier.store       -> the same, for a chunk whose slot is gone

Each tier has a queue of its own, and no task waits for two tiers: one that is slow, fails or hangs delays no
other. Where a tier has parts (several drives), each part of a batch is a task of its own, too.

A server's step requests its run for the end of the step: the loop and the drive's threads share the
interpreter with the step and would delay it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ...tiers.base import (
    Buffer,
    ChunkKey,
    Divides,
    Failure,
    Outcome,
    RemoveReason,
    ReportsRemovals,
    Tier,
    ability,
)
from ...tiers.pinned.slots import Slot, SlotTier
from ..loop import LoopThread
from ..waiting import Waiting
from .cascades import Batch
from .deadlines import Deadlines
from .lower import LowerTiers
from .placement import Placement
from .rates import RatedLoad
from .relay import Relay

logger = logging.getLogger(__name__)

AFTER_STEP_S = 0.01  # a scheduler's step that has committed stores has done its own work by then
LOG_EVERY_S = 60.0  # a tier that raises may do so at every batch


class Run(enum.IntEnum):
    """Which run is requested; the loop is woken once until it has run."""

    NONE = 0
    AFTER_STEP = 1
    NOW = 2


class _Call:
    """A batch on its way to a tier, in parts. It ends once: then the next batch may begin."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def begin(self, parts: int, limit_s: float, is_late: Callable[[_Call], None]) -> None:
        """Expect so many parts within the limit."""
        self._parts = self._left = parts
        self._is_late = self._has_ended = False
        self._timer = asyncio.get_running_loop().call_later(limit_s, is_late, self)

    def part_came_back(self) -> bool:
        """Note that a part came back; returns whether the call ends with it."""
        self._left -= 1
        if not self._left:
            self._timer.cancel()
        return self._ends()

    def limit_is_over(self) -> bool:
        """Wait from now on for one part only; returns whether the call ends, as one has come back."""
        self._is_late = True
        return self._ends()

    def _ends(self) -> bool:
        if self._has_ended:
            return False
        self._has_ended = not self._left or (self._is_late and self._left < self._parts)
        return self._has_ended


class Transfers:
    """Moves chunks between the slots of one placement and the tiers below.

    `request…` and `send` may be called from any thread, the former under `lock`. All coroutines run on the
    loop thread.
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
        self._cascades = placement.cascades
        self._pinned, self._lower = pinned, lower
        # Under the lock:
        self._requested = Run.NONE
        # What tiers say that they have removed; any thread appends, and the loop thread takes:
        self._removed: deque[tuple[str, Sequence[ChunkKey]]] = deque()
        # On the loop thread only:
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None  # the run after a step
        self._retry: asyncio.TimerHandle | None = None  # the run after a pause of some tier
        self._relays: dict[int, Relay] = {}
        self._urgent = 0  # who waits for everything to be tried once
        self._waiting = Waiting()
        self._logged_s: dict[str, float] = {}  # when each tier's last traceback was logged
        self._stopped = False
        self._wakeup = loop.wakeup(self._woken)
        dividing = ((tier.name, ability(tier, Divides)) for tier in lower.all)  # type: ignore[type-abstract]
        self._dividing = {name: divides for name, divides in dividing if divides is not None}
        for tier in lower.all:
            reports = ability(tier, ReportsRemovals)  # type: ignore[type-abstract]
            if reports is not None:
                reports.watch(partial(self._note_removed, tier.name))

    # --- any thread ---------------------------------------------------------------------------------

    def request(self, run: Run) -> bool:
        """Request a run; returns whether the caller has to `send` the wake-up. Call it under the lock."""
        is_sooner = run > self._requested
        if is_sooner:
            self._requested = run
        return is_sooner

    def request_owed(self, run: Run) -> bool:
        """Request a run if some tier below is owed something; returns as `request`."""
        return run > self._requested and self._cascades.may_move and self.request(run)

    def request_queued(self) -> bool:
        """Request a run at once if something is queued; returns as `request`."""
        is_queued = self._requested is Run.AFTER_STEP or self._placement.has_promotions
        return is_queued and self.request(Run.NOW)

    def send(self, wakeup: bool) -> None:
        """Wake the loop thread if `wakeup` says so. Call it without the lock."""
        if wakeup:
            self._wakeup.send()

    def _note_removed(self, tier: str, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        # A tier may call this under locks of its own: it must not wait for the chain's.
        self._removed.append((tier, keys))

    # --- on the loop thread -------------------------------------------------------------------------

    async def until(self, is_so: Callable[[], bool], limit_s: float | None = None) -> bool:
        """Wait until `is_so()`, at most for `limit_s` if there is one; returns whether it is.

        It is asked under the lock when something has moved or a pin is back.
        """

        def asked() -> bool:
            with self._lock:
                return is_so()

        try:
            async with asyncio.timeout(None if limit_s is None else max(0.0, limit_s)):
                await self._waiting.until(asked)
        except TimeoutError:
            return False
        return True

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
            promotions = self._placement.take_promotions()
            cascades = self._taken()
            # Nothing moves while tiers hear of new weights, and what ends that runs this again.
            retry_at_s = None if self._lower.invalidations else self._cascades.retry_at_s
        for tier, slots in promotions:
            for part in self._parts(tier, slots):
                if self._stopped:
                    self._end_promotion(tier, part, Outcome())
                else:
                    self._spawn(self._promote(tier, part))
        for batch in cascades:
            self._start(batch)
        self._retry_at(retry_at_s)
        self._waiting.signal()

    def _taken(self) -> list[Batch]:
        """Take the cascades that may move now. Call it under the lock."""
        while self._removed:
            tier, keys = self._removed.popleft()
            self._cascades.removed_by(tier, keys)
        # What a tier gets before it has heard of new weights it would drop with the old.
        if self._lower.invalidations:
            return []
        return self._cascades.take(time.monotonic(), is_urgent=self._urgent > 0)

    def _start(self, batch: Batch) -> None:
        call = _Call(batch)
        parts = self._parts(self._lower.all[batch.tier], batch.slots) if batch.slots else ()
        works = [self._cascade(call, part) for part in parts]
        if batch.keys:
            relay = self._relays.setdefault(
                batch.tier, Relay(self._placement.slot_bytes, self._placement.load_deadlines_s)
            )
            works += [
                self._relay(relay, call, batch.keys[start : start + relay.chunks_max])
                for start in range(0, len(batch.keys), relay.chunks_max)
            ]
        call.begin(len(works), self._placement.load_deadline_s, self._is_late)
        for work in works:
            self._spawn(work)

    def _retry_at(self, retry_at_s: float | None) -> None:
        """Run again when the first pause of a tier is over."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if retry_at_s is not None and not self._stopped:
            delay_s = max(0.0, retry_at_s - time.monotonic())
            self._retry = asyncio.get_running_loop().call_later(delay_s, self._pump)

    async def _promote(self, tier: Tier, slots: Sequence[Slot]) -> None:
        outcome, began_s = Outcome(), time.monotonic()
        slot_bytes = self._placement.slot_bytes
        with self._lock:
            load = RatedLoad(self._lower.rates[tier.name], len(slots) * slot_bytes, began_s)
        deadlines = Deadlines(0.0, self._placement.load_deadlines_s)
        late = asyncio.get_running_loop().call_later(deadlines.at_s(tier.name), self._is_late_load, load)
        try:
            outcome = await tier.load([slot.key for slot in slots], self._buffers(slots))
        except Exception as error:
            self._log(tier, error)
        finally:
            late.cancel()
            with self._lock:
                load.ended(time.monotonic(), len(outcome.succeeded) * slot_bytes)
            self._end_promotion(tier, slots, outcome)
            self._took("loaded", tier, began_s)
            self._pump()

    def _is_late_load(self, load: RatedLoad) -> None:
        with self._lock:
            load.ended(time.monotonic(), 0)

    def _end_promotion(self, tier: Tier, slots: Sequence[Slot], outcome: Outcome) -> None:
        with self._lock:
            self._placement.promoted(tier, slots, outcome)

    async def _cascade(self, call: _Call, slots: Sequence[Slot]) -> None:
        keys = [slot.key for slot in slots]
        outcome = Outcome()
        try:
            buffers = dict(zip(keys, self._buffers(slots), strict=True))
            outcome = await self._store(call.batch.tier, buffers)
        finally:
            self._settle(call, keys, slots, outcome)

    async def _relay(self, relay: Relay, call: _Call, keys: Sequence[ChunkKey]) -> None:
        index, outcome = call.batch.tier, Outcome()
        try:
            async with relay.lock:
                filled = await relay.filled(self._lower.all[:index], keys)
                outcome = await self._store(index, filled)
            gone = dict.fromkeys((key for key in keys if key not in filled), Failure.MISSING)
            outcome = Outcome(outcome.succeeded, {**outcome.failed, **gone})
        except Exception as error:
            self._log(self._lower.all[index], error)
        finally:
            self._settle(call, keys, (), outcome)

    async def _store(self, index: int, buffers: dict[ChunkKey, Buffer]) -> Outcome:
        """Give a tier those chunks that are still of interest; one that raises has taken none."""
        tier = self._lower.all[index]
        with self._lock:  # asked right before the call: what was invalidated must not reach the tier
            keys = self._cascades.wanted(index, list(buffers))
        began_s = time.monotonic()
        try:
            return await tier.store(keys, [buffers[key] for key in keys]) if keys else Outcome()
        except Exception as error:
            self._log(tier, error)
            return Outcome()
        finally:
            self._took("stored", tier, began_s)

    def _settle(self, call: _Call, keys: Sequence[ChunkKey], slots: Sequence[Slot], outcome: Outcome) -> None:
        with self._lock:
            self._cascades.settle(call.batch.tier, keys, slots, outcome, time.monotonic())
            if call.part_came_back():
                self._cascades.ended(call.batch)
        self._pump()

    def _is_late(self, call: _Call) -> None:
        """Some part of a call hangs.

        Where others are through, for one drive of several, it holds up no other batch. Where no part is
        through, it is the whole tier that is slow, until one comes back.
        """
        with self._lock:
            if call.limit_is_over():
                self._cascades.ended(call.batch)
            else:
                self._cascades.is_overdue(call.batch)
        self._pump()

    @contextmanager
    def _urgently(self) -> Iterator[None]:
        """Somebody waits for what is owed: each chunk is tried once, pause or not."""
        self._urgent += 1
        try:
            self._pump()
            yield
        finally:
            self._urgent -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a transfer between tiers failed; its chunks are misses", exc_info=task.exception())

    def _log(self, tier: Tier, error: Exception) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s.get(tier.name, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged_s[tier.name] = now_s
            logger.error("%s raised; what it was asked for fails", tier.name, exc_info=error)

    def _count(self, name: str, tier: str, amount: int) -> None:
        with self._lock:
            self._placement.tally.count(name, tier, amount)

    def _took(self, how: str, tier: Tier, began_s: float) -> None:
        with self._lock:
            self._placement.tally.took(how, tier.name, time.monotonic() - began_s)

    def _parts(self, tier: Tier, slots: Sequence[Slot]) -> list[Sequence[Slot]]:
        """The slots by the part of the tier that has or gets them, where it has parts."""
        divides = self._dividing.get(tier.name)
        if divides is None:
            return [slots]
        shares = divides.divide([slot.key for slot in slots])
        return [[slots[position] for position in positions] for positions in shares]

    def _buffers(self, slots: Sequence[Slot]) -> list[Buffer]:
        return [self._pinned.buffer(slot) for slot in slots]
