"""The chain: placement over several tiers, and the movement between them.

The pinned tier is the chain's hub. Stores from the device land in its slots and cascade to the tiers below;
what lies only below is promoted into a slot before anyone may load it. All placement changes under one lock
in calls that never wait, so any thread may make them, a server's scheduler first of all. Everything that
waits runs on the loop thread: `_pump` takes the work that is there and starts one task a batch.

    any thread                     loop thread
    acquire: a hit below, wished -> _pump -> _promote: tier.load(...) -> READY, waiters woken
    commit: READY, dirty, queued -> _pump -> _cascade: tier.store(...) -> clean, unpinned

A scheduler asks chunk by chunk, with `pin` and `promise`, and says with `begin` when its step asks for no
more: the loop and the threads of a disk share its interpreter, and what they begin within a step holds it up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from ..tiers.base import Buffer, ChunkKey, Failure, Outcome, Tier, TierStats
from ..tiers.errors import TierError
from ..tiers.pinned.slots import Slot, SlotState, SlotTier
from .events import EventLog, TellsRemovals
from .loop import LoopThread
from .placement import Found, Placement, Presence, Reservation

logger = logging.getLogger(__name__)

STEP_S = 0.01  # a scheduler's step that has committed stores is through with its own work by then


@runtime_checkable
class Invalidates(Protocol):
    """A tier that outlives the process and so has to be told when the weights change."""

    async def invalidate(self) -> None:
        """Return once no lookup finds anything stored before the call."""
        ...


@dataclass(frozen=True, slots=True)
class ChainStats:
    """The chain's numbers at one moment.

    Attributes:
        tiers: by tier name, pinned first.
        dirty_chunks: chunks in slots that wait for the tiers below.
        pinned_slots: slots that somebody uses right now.
        counters: monotonic counts by (name, tier name).
    """

    tiers: Mapping[str, TierStats]
    dirty_chunks: int
    pinned_slots: int
    counters: Mapping[tuple[str, str], int]


class Chain:
    """Placement over one pinned tier and the tiers below it, nearest first.

    All methods are thread-safe; those that are not coroutines never wait for a disk or a device. The
    coroutines run on the loop thread. The chain does not own the tiers: who built them closes them, after
    `stop`.
    """

    def __init__(
        self,
        pinned: SlotTier,
        lower: Sequence[Tier],
        loop: LoopThread,
        *,
        load_deadline_s: float,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pinned = pinned
        self._lower = tuple(lower)
        self._loop = loop
        self._load_deadline_s = load_deadline_s
        self._lock = threading.Lock()
        # Under the lock:
        self._placement = Placement(
            pinned,
            below=lower[0].name if lower else None,
            load_deadline_s=load_deadline_s,
            events=events,
            clock=clock,
        )
        self._invalidations = 0  # under way; while there is one, nothing is asked of the tiers below
        self._room_waiters = 0  # who waits in `room`, and has to be told when a pin is returned
        # On the loop thread only:
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None  # the pump that comes after a step
        self._progress = asyncio.Event()  # set and replaced whenever something moved, or somebody let go
        self._lost: Counter[Failure] = Counter()  # what the last tier failed to take since the last flush
        self._stopped = False
        self._disused = False  # the tiers below could not be told that the weights changed
        self._bell = loop.doorbell(self._rung)
        if events is not None:
            for tier in lower:
                if isinstance(tier, TellsRemovals):
                    tier.watch(partial(events.removed, tier.name))

    @property
    def slots_count(self) -> int:
        return self._pinned.table.slots_count

    # --- any thread ---------------------------------------------------------------------------------

    def lookup(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Say for each key whether any tier has it, or is about to; nothing is moved."""
        with self._lock:
            found = [self._placement.table.get(key) is not None for key in keys]
        for index, _ in self._below([key for key, hit in zip(keys, found, strict=True) if not hit], found):
            found[index] = True
        return found

    def lookup_below(self, key: ChunkKey) -> bool:
        """Say whether some tier below the pinned one has the chunk."""
        return self._tier_below(key) is not None

    def acquire(self, keys: Sequence[ChunkKey]) -> list[Found]:
        """Pin what is in a slot; start the promotion of what lies below, in the order of `keys`."""
        with self._lock:
            found = [self._placement.pin(key) for key in keys]
            epoch = self._placement.epoch
        misses = [key for key, (presence, *_) in zip(keys, found, strict=True) if presence is Presence.MISS]
        skip = [presence is not Presence.MISS for presence, *_ in found]
        hits = self._below(misses, skip) if misses else []
        with self._lock:
            if self._placement.epoch != epoch:
                hits = []  # invalidated since the tiers below were asked
            for index, tier in hits:
                found[index] = self._placement.promise(keys[index], tier)
            self._placement.count_refused(found)
            # Also what others were promised and have not begun with: the caller may wait for it.
            wake = self._placement.has_new_work and self._placement.tell_work()
        self._wake(wake)
        return found

    def pin(self, key: ChunkKey) -> Found:
        """Pin the chunk's slot; a miss where it has none, and then nothing is counted."""
        with self._lock:
            found = self._placement.pin(key)
            if found.presence is Presence.LATE:
                self._placement.count_refused([found])
        return found

    def promise(self, key: ChunkKey) -> Found:
        """Ask the tiers below for a chunk without a slot, and pin one that it will come into.

        Its promotion begins with the next `begin`.
        """
        epoch = self._placement.epoch
        tier = self._tier_below(key)
        with self._lock:
            if self._placement.epoch != epoch:
                tier = None  # invalidated since it was asked
            found = Found(Presence.MISS) if tier is None else self._placement.promise(key, tier)
            if found.slot is None:
                self._placement.count_refused([found])
        return found

    def begin(self) -> None:
        """Have what was promised and committed begin to move: a server's step asks for no more."""
        with self._lock:
            wake = self._placement.has_new_work and self._placement.tell_work()
        self._wake(wake)

    def state_of(self, slot: Slot) -> Presence:
        """Look at an acquired slot again."""
        if slot.state is SlotState.READY:
            return Presence.READY
        with self._lock:
            return self._placement.presence(slot)

    def release(self, slots: Iterable[Slot]) -> None:
        """Return the caller's pin on each slot."""
        with self._lock:
            self._placement.table.unpin(slots)
            wake = self._room_waiters > 0 and self._placement.tell_work()
        self._wake(wake)

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        """The chunks were used, in prefix order."""
        with self._lock:
            self._placement.table.touch(keys)

    def reserve(self, keys: Sequence[ChunkKey]) -> Reservation:
        """Take slots for those of `keys` that have none, as many leading ones as there is room for.

        The caller fills them, then calls `commit` or `abandon`.
        """
        with self._lock:
            return self._placement.reserve(keys)

    def commit(self, slots: Sequence[Slot], *, admitted: int = 0, in_step: bool = False) -> None:
        """The slots are filled: readable from now on, and on their way down.

        Where more wait for the tiers below than may, the trailing ones stay in their slots only.

        Args:
            admitted: chunks that `admit` let in and that end here, whether filled or not.
            in_step: a server's step goes on: they begin to move with `begin`, or after `STEP_S`.
        """
        with self._lock:
            self._placement.commit(slots, admitted)
            wake = self._placement.note_work() if in_step else self._placement.tell_work()
        self._wake(wake)

    def abandon(self, slots: Sequence[Slot]) -> None:
        """The slots could not be filled: no lookup finds them from now on."""
        if not slots:
            return
        with self._lock:
            self._placement.abandon(slots)
            wake = self._placement.tell_work()
        self._wake(wake)

    def forget(self, slots: Sequence[Slot]) -> None:
        """No lookup finds the slots from now on; the caller keeps its pins until nothing touches them."""
        with self._lock:
            self._placement.table.drop(slots)

    def invalidate(self) -> list[ChunkKey]:
        """Let no lookup find anything stored before now, in any tier; returns the keys that left their slots.

        Slots in use are free when their users return them. Until the tiers below have confirmed, they
        answer nothing: a chunk of the old weights is never served to the new ones.
        """
        with self._lock:
            self._invalidations += 1  # first: who sees the new epoch must ask no tier that is not told yet
            gone = self._placement.drop_all()
        self._loop.submit(self._invalidate_lower())
        return gone

    def count_loaded(self, chunks: int) -> None:
        """Chunks were copied out of their slots, onto the device."""
        with self._lock:
            self._placement.count_moved("loaded", self._pinned.name, chunks)

    def count(self, name: str, tier: str, amount: int) -> None:
        """Add to a counter that the chain's user keeps, so that all are read in one place."""
        with self._lock:
            self._placement.counters[name, tier] += amount

    def stats(self) -> ChainStats:
        with self._lock:
            counters = dict(self._placement.counters)
            dirty, pinned = self._placement.dirty_count, self._placement.table.pinned_count
            pinned_stats = self._placement.stats()
        tiers = {self._pinned.name: pinned_stats, **{tier.name: tier.stats() for tier in self._lower}}
        return ChainStats(tiers, dirty, pinned, counters)

    def check(self) -> None:
        """Assert the chain's integrity; for tests."""
        with self._lock:
            self._placement.check()

    # --- on the loop thread -------------------------------------------------------------------------

    async def fetch(self, keys: Sequence[ChunkKey]) -> tuple[list[Slot], dict[ChunkKey, Failure]]:
        """Bring the keys into slots and wait for them, each at most for the deadline.

        Returns:
            Readable slots in the order of `keys`, pinned for the caller; and why each other key has none.
        """
        found = self.acquire(keys)
        pinned = [slot for _, slot, _ in found if slot is not None]
        try:
            await self._settle(pinned)
        except BaseException:
            self.release(pinned)
            raise
        ready = [slot for slot in pinned if slot.state is SlotState.READY]
        useless = [slot for slot in pinned if slot.state is not SlotState.READY]
        self.release(useless)
        failed = {
            key: _WHY[presence] for key, (presence, slot, _) in zip(keys, found, strict=True) if not slot
        }
        late = {slot.key: Failure.TIMEOUT for slot in useless if slot.state is SlotState.FILLING}
        gone = {slot.key: Failure.MISSING for slot in useless if slot.state is SlotState.GONE}
        return ready, failed | late | gone

    async def settled(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Wait until nobody fills the slots of these keys any more, at most for the deadline.

        Returns:
            Keys whose slots are still being filled.
        """
        with self._lock:
            slots = [slot for slot in map(self._placement.table.get, keys) if slot is not None]
        await self._settle(slots)
        return [slot.key for slot in slots if slot.state is SlotState.FILLING]

    async def room(self) -> bool:
        """Wait until a slot can be had, at most for the deadline; False where none came free.

        Who waits here holds no slot, and who holds one waits for a device or a disk and never for another
        slot: so nobody waits for himself, nor two for each other. Waiters are served in the order in which
        they came; the slot is theirs if they reserve before they await anything else.
        """
        with self._lock:
            self._room_waiters += 1
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while not self._has_room():
                    await self._progress.wait()
        except TimeoutError:
            return False
        finally:
            with self._lock:
                self._room_waiters -= 1
        return True

    async def admit(self, count: int) -> int:
        """Wait for a place for `count` more chunks among those that go down, at most for the deadline.

        A server's step never waits, and what finds no place stays in its slot. Who can wait asks here.

        Returns:
            What to hand to `commit`: `count`, or 0 where no place came free in time.
        """
        count = min(count, self._placement.dirty_max)
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while not self._admits(count):
                    await self._progress.wait()
        except TimeoutError:
            return 0
        return count

    async def flush(self) -> None:
        """Return when all that was committed so far, and found a place among what goes down, is durable.

        A chunk that found no place, or that the cap of the last tier had no room for, is left out.

        Raises:
            TierError: a tier failed to make something durable, or the last one failed to take some chunks
                since the last flush. Every tier was flushed all the same.
        """
        await self.drain()
        flushed = [await _outcome_of(tier.flush()) for tier in self._lower]
        for error in flushed:
            if error is not None:
                raise error
        self._raise_lost()

    async def drain(self) -> None:
        """Return when everything committed so far has been offered to every tier below."""
        waiting = self._dirty_now()
        while not waiting.isdisjoint(self._dirty_now()):
            await self._progress.wait()

    async def stop(self) -> None:
        """Stop moving: cancel what runs, give up what waits, return once nothing touches a slot."""
        with self._lock:
            self._placement.stop_cascading()
        self._stopped = True
        self._pump()  # what was wished for is given up, and waiters are told
        await asyncio.sleep(0)  # a task that is cancelled before its first step never reaches its `finally`
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _rung(self) -> None:
        if self._placement.work_is_told:
            self._pump()
        elif self._later is None:  # it can wait for the end of a step
            self._later = asyncio.get_running_loop().call_later(STEP_S, self._pump)

    def _pump(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        with self._lock:
            work = self._placement.take_work()
        for tier, slots in work.promotions:
            if self._stopped:
                self._settle_promotion(tier, slots, Outcome())
            else:
                self._spawn(self._promote(tier, slots))
        for slots in work.cascades:
            self._spawn(self._cascade(slots))
        self._signal()

    async def _promote(self, tier: Tier, slots: Sequence[Slot]) -> None:
        outcome, began_s = Outcome(), time.monotonic()
        try:
            outcome = await tier.load([slot.key for slot in slots], self._buffers(slots))
        finally:
            self._settle_promotion(tier, slots, outcome)
            self.count("loaded_us", tier.name, _us_since(began_s))
            self._signal()

    def _settle_promotion(self, tier: Tier, slots: Sequence[Slot], outcome: Outcome) -> None:
        with self._lock:
            self._placement.promoted(tier, slots, outcome)

    async def _cascade(self, slots: Sequence[Slot]) -> None:
        try:
            for tier in self._lower:
                # Asked anew for each tier, right before the call: a chunk that was invalidated while it
                # waited must not reach a tier that starts over.
                valid = [slot for slot in slots if slot.state is SlotState.READY]
                began_s, invalidating = time.monotonic(), self._invalidations > 0
                outcome = await tier.store([slot.key for slot in valid], self._buffers(valid))
                with self._lock:
                    self._placement.stored_below(tier, outcome)
                    self._placement.counters["stored_us", tier.name] += _us_since(began_s)
            # Stored for the new weights before the tier knows of them: dropped, and by no fault of the tier.
            self._note_lost([] if invalidating else valid, outcome.failed)
        except Exception:
            self._note_lost(slots, dict.fromkeys((slot.key for slot in slots), Failure.IO_ERROR))
            raise
        finally:
            with self._lock:
                self._placement.cascaded(slots)
            self._pump()

    async def _invalidate_lower(self) -> None:
        try:
            for tier in self._lower:
                if isinstance(tier, Invalidates):
                    chunks = tier.stats().chunks
                    await tier.invalidate()
                    self.count("invalidated_chunks", tier.name, chunks)
        except BaseException:
            # `_invalidations` stays raised: a tier that could not be told is never asked again.
            logger.exception("a tier could not be told that the weights changed; it is used no more")
            with self._lock:
                self._placement.stop_cascading()
            self._disused = True
            self._signal()
            raise
        with self._lock:
            self._invalidations -= 1

    async def _settle(self, slots: Sequence[Slot]) -> None:
        """Wait until none of the slots is FILLING, or the deadline has passed."""
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while any(slot.state is SlotState.FILLING for slot in slots):
                    await self._progress.wait()
        except TimeoutError:
            self.count("late_loads", self._pinned.name, 1)

    def _note_lost(self, slots: Sequence[Slot], failed: Mapping[ChunkKey, Failure]) -> None:
        """The last tier did not take some chunks: remember those that still matter, for `flush` to tell."""
        for slot in slots:
            reason = failed.get(slot.key, Failure.NO_SPACE)
            # A full tier chooses what to keep, and a chunk that was invalidated on the way may go.
            if reason is not Failure.NO_SPACE and slot.state is SlotState.READY:
                self._lost[reason] += 1

    def _raise_lost(self) -> None:
        if self._disused:
            raise TierError(
                self._lower[-1].name, "it could not be told that the weights changed, and is used no more"
            )
        lost, self._lost = self._lost, Counter()
        if lost:
            reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
            raise TierError(
                self._lower[-1].name,
                f"{lost.total()} chunks that were stored since the last flush are not in it ({reasons})",
            )

    def _signal(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a transfer between tiers failed; its chunks are misses", exc_info=task.exception())

    # --- from either --------------------------------------------------------------------------------

    def _below(self, keys: Sequence[ChunkKey], skip: Sequence[bool]) -> list[tuple[int, Tier]]:
        """Ask the tiers below for `keys`, which are those at the positions where `skip` is False."""
        if self._invalidations:
            return []
        positions = [index for index, skipped in enumerate(skip) if not skipped]
        below = []
        for tier in self._lower:
            hits = tier.lookup(keys)
            below += [(index, tier) for index, hit in zip(positions, hits, strict=True) if hit]
            missing = [i for i, hit in enumerate(hits) if not hit]
            keys, positions = [keys[i] for i in missing], [positions[i] for i in missing]
        return sorted(below, key=lambda pair: pair[0])

    def _tier_below(self, key: ChunkKey) -> Tier | None:
        if self._invalidations:
            return None
        for tier in self._lower:
            if tier.lookup((key,))[0]:
                return tier
        return None

    def _wake(self, wake: bool) -> None:
        if wake:
            self._bell.ring()

    def _admits(self, count: int) -> bool:
        with self._lock:
            return self._placement.admit(count)

    def _has_room(self) -> bool:
        with self._lock:
            return self._placement.has_room

    def _dirty_now(self) -> frozenset[Slot]:
        with self._lock:
            return self._placement.dirty

    def _buffers(self, slots: Sequence[Slot]) -> list[Buffer]:
        return [self._pinned.buffer(slot) for slot in slots]


_WHY = {Presence.MISS: Failure.MISSING, Presence.LATE: Failure.TIMEOUT, Presence.FULL: Failure.NO_SPACE}


async def _outcome_of(work: Awaitable[None]) -> TierError | None:
    try:
        await work
    except TierError as error:
        return error
    return None


def _us_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1_000_000)
