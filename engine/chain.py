"""The chain: what lies where below the device, and what moves next.

The pinned tier is the chain's hub. Stores from the device land in its slots and cascade to the tiers below;
what lies only below is promoted into a slot before anyone may load it. All placement changes under one lock
in functions that never wait, so any thread may call them, a server's scheduler first of all. Everything that
waits runs on the loop thread: `_pump` takes what was queued and starts one task a batch.

    any thread                     loop thread
    acquire: a hit below, queued -> _pump -> _promote: tier.load(...) -> READY, waiters woken
    commit: READY, dirty, queued -> _pump -> _cascade: tier.store(...) -> clean, unpinned

A queued or running promotion or cascade holds a pin on its slots; that is all that keeps a slot in place.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..tiers.base import Buffer, ChunkKey, Failure, RemoveReason, Tier, TierStats
from ..tiers.slots import Slot, SlotState, SlotTier
from .events import EventLog, TellsRemovals
from .loop import LoopThread

logger = logging.getLogger(__name__)

BATCH_CHUNKS_MAX = 64  # one tier call; enough to fill a drive's queue, small enough to show progress
CASCADES_IN_FLIGHT_MAX = 4  # tier calls at once; each already spreads over the tier's own threads
DIRTY_FRACTION_MAX = 0.5  # of all slots; what waits for the disk may not crowd out what could hit


class Presence(enum.Enum):
    """Where a wanted chunk is."""

    READY = enum.auto()  # in a slot, readable
    PENDING = enum.auto()  # on its way into a slot
    LATE = enum.auto()  # on its way for longer than the deadline: count it as a miss
    FULL = enum.auto()  # below, but every slot is in use: count it as a miss
    MISS = enum.auto()


@runtime_checkable
class Invalidates(Protocol):
    """A tier that outlives the process and so has to be told when the weights change."""

    async def invalidate(self) -> None:
        """Return once no lookup finds anything stored before the call."""
        ...


class Found(NamedTuple):
    """One answer of `Chain.acquire`.

    Attributes:
        slot: pinned for the caller, who returns it with `release`; None where there is nothing to read.
        source: name of the tier that supplies the chunk.
    """

    presence: Presence
    slot: Slot | None = None
    source: str = ""


class Reservation(NamedTuple):
    """What `Chain.reserve` could do for a store.

    Attributes:
        slots: FILLING slots for new chunks, in the order of the keys, pinned for the caller.
        busy: keys whose slot somebody else is filling.
        left: keys for which there was no room.
        evicted: keys that left their slots for these.
    """

    slots: list[Slot]
    busy: list[ChunkKey]
    left: list[ChunkKey]
    evicted: list[ChunkKey]


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
    `drain`.
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
        self._events = events
        self._clock = clock
        self._dirty_max = max(1, int(pinned.table.slots_count * DIRTY_FRACTION_MAX))
        self._lock = threading.Lock()
        # Under the lock:
        self._table = pinned.table
        self._since: dict[Slot, float] = {}  # when each promotion was asked for
        self._wishes: list[tuple[Tier, Slot]] = []
        self._to_cascade: deque[Slot] = deque()
        self._dirty: set[Slot] = set()
        self._cascades_in_flight = 0
        self._admitted = 0  # chunks that will be committed and have their place among the dirty ones
        self._pump_is_due = False
        self._stopped = False
        self._invalidations = 0  # under way; while there is one, nothing is asked of the tiers below
        self._counters: Counter[tuple[str, str]] = Counter()
        if events is not None:
            for tier in lower:
                if isinstance(tier, TellsRemovals):
                    tier.watch(partial(events.removed, tier.name))
        # On the loop thread only:
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress = asyncio.Event()  # set and replaced whenever a promotion or cascade ends

    @property
    def slots_count(self) -> int:
        return self._table.slots_count

    def lookup(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Say for each key whether any tier has it, or is about to; nothing is moved."""
        with self._lock:
            found = [self._table.get(key) is not None for key in keys]
        for index, _ in self._below([key for key, hit in zip(keys, found, strict=True) if not hit], found):
            found[index] = True
        return found

    def lookup_below(self, key: ChunkKey) -> bool:
        """Say whether some tier below the pinned one has the chunk."""
        return bool(self._below([key], [False]))

    def acquire(self, keys: Sequence[ChunkKey], *, below: bool = True) -> list[Found]:
        """Pin what is in a slot; start the promotion of what lies below, in the order of `keys`.

        Args:
            below: whether the tiers below are asked at all.
        """
        with self._lock:
            found = [self._pin(key) for key in keys]
        misses = [key for key, (presence, *_) in zip(keys, found, strict=True) if presence is Presence.MISS]
        if not misses:
            return found
        if not below:
            self.count("misses", self._pinned.name, len(misses))
            return found
        hits = self._below(misses, [presence is not Presence.MISS for presence, *_ in found])
        with self._lock:
            for index, tier in hits:
                found[index] = self._promise(keys[index], tier)
            self._counters["misses", self._pinned.name] += len(misses) - len(hits)
            wake = bool(self._wishes) and self._wake_is_needed()
        if wake:
            self._loop.call_soon(self._pump)
        return found

    def state_of(self, slot: Slot) -> Presence:
        """Look at an acquired slot again."""
        if slot.state is SlotState.READY:
            return Presence.READY
        if slot.state is SlotState.GONE:
            return Presence.MISS
        with self._lock:
            return self._presence(slot)

    def release(self, slots: Iterable[Slot]) -> None:
        """Return the caller's pin on each slot."""
        with self._lock:
            self._table.unpin(slots)

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        """The chunks were used, in prefix order."""
        with self._lock:
            self._table.touch(keys)

    def reserve(self, keys: Sequence[ChunkKey]) -> Reservation:
        """Take slots for those of `keys` that have none, as many leading ones as there is room for.

        The caller fills them, then calls `commit` or `abandon`.
        """
        with self._lock:
            held = {key: slot for key in keys if (slot := self._table.get(key)) is not None}
            new = [key for key in keys if key not in held]
            slots, evicted = self._table.reserve(new)
            self._note_evicted(evicted)
        busy = [key for key, slot in held.items() if slot.state is SlotState.FILLING]
        return Reservation(slots, busy, new[len(slots) :], evicted)

    def commit(self, slots: Sequence[Slot], *, admitted: int = 0) -> None:
        """The slots are filled: readable from now on, and on their way down.

        Where more wait for the tiers below than may, the trailing ones stay in their slots only.

        Args:
            admitted: chunks that `admit` let in and that end here, whether filled or not.
        """
        with self._lock:
            self._admitted -= admitted
            stored = [slot for slot in slots if slot.state is SlotState.FILLING]
            self._counters["stored_chunks", self._pinned.name] += len(stored)
            self._counters["stored_bytes", self._pinned.name] += len(stored) * self._pinned.slot_bytes
            self._soil(stored)
            self._table.commit(slots)
            self._note_stored(self._pinned.name, [slot.key for slot in stored])
            wake = self._wake_is_needed()
        if wake:
            self._loop.call_soon(self._pump)

    def abandon(self, slots: Sequence[Slot]) -> None:
        """The slots could not be filled: no lookup finds them from now on."""
        with self._lock:
            self._table.drop(slots)
            self._table.unpin(slots)
            wake = self._wake_is_needed()
        if wake:
            self._loop.call_soon(self._pump)

    def forget(self, slots: Sequence[Slot]) -> None:
        """No lookup finds the slots from now on; the caller keeps its pins until nothing touches them."""
        with self._lock:
            self._table.drop(slots)

    def invalidate(self) -> list[ChunkKey]:
        """Let no lookup find anything stored before now, in any tier; returns the keys that left their slots.

        Slots in use are free when their users return them. Until the tiers below have confirmed, they
        answer nothing: a chunk of the old weights is never served to the new ones.
        """
        with self._lock:
            gone = self._table.drop_all()
            self._invalidations += 1
            if self._events is not None:
                self._events.removed(self._pinned.name, gone, RemoveReason.INVALIDATED)
        self._loop.submit(self._invalidate_lower())
        return gone

    def count_loaded(self, chunks: int) -> None:
        """Chunks were copied out of their slots, onto the device."""
        self.count("loaded_chunks", self._pinned.name, chunks)
        self.count("loaded_bytes", self._pinned.name, chunks * self._pinned.slot_bytes)

    def count(self, name: str, tier: str, amount: int) -> None:
        """Add to a counter that the chain's user keeps, so that all are read in one place."""
        with self._lock:
            self._counters[name, tier] += amount

    def stats(self) -> ChainStats:
        with self._lock:
            counters = dict(self._counters)
            dirty, pinned = len(self._dirty), self._table.pinned_count
            pinned_stats = self._stats_of_pinned()
        tiers = {self._pinned.name: pinned_stats, **{tier.name: tier.stats() for tier in self._lower}}
        return ChainStats(tiers, dirty, pinned, counters)

    def check(self) -> None:
        """Assert the chain's integrity; for tests."""
        with self._lock:
            self._table.check()
            assert all(slot.pins for slot in self._dirty), "a dirty slot is pinned"
            assert len(self._dirty) <= self._dirty_max
            assert set(self._to_cascade) <= self._dirty

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

    async def room(self) -> bool:
        """Wait until a cascade has ended; False when none is under way, so that waiting is in vain."""
        if not self._dirty:
            return False
        await self._progress.wait()
        return True

    async def admit(self, count: int) -> int:
        """Wait for a place for `count` more chunks among those that go down, at most for the deadline.

        A server's step never waits, and what finds no place stays in its slot. Who can wait asks here.

        Returns:
            What to hand to `commit`: `count`, or 0 where no place came free in time.
        """
        count = min(count, self._dirty_max)
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while not self._admits(count):
                    await self._progress.wait()
        except TimeoutError:
            return 0
        return count

    async def flush(self) -> None:
        """Return when everything committed so far is durable in the last tier."""
        await self.drain()
        for tier in self._lower:
            await tier.flush()

    async def drain(self) -> None:
        """Return when everything committed so far has been offered to every tier below."""
        waiting = set(self._dirty_now())
        while not waiting.isdisjoint(self._dirty_now()):
            await self._progress.wait()

    async def stop(self) -> None:
        """Stop moving: cancel what runs, give up what waits, return once nothing touches a slot."""
        with self._lock:
            self._stopped = True
            self._table.unpin(self._to_cascade)
            self._dirty.difference_update(self._to_cascade)
            self._to_cascade.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _invalidate_lower(self) -> None:
        try:
            for tier in self._lower:
                if isinstance(tier, Invalidates):
                    await tier.invalidate()
        finally:
            with self._lock:
                self._invalidations -= 1

    def _pump(self) -> None:
        with self._lock:
            self._pump_is_due = False
            wishes, self._wishes = self._wishes, []
            batches = self._take_cascades()
        for tier in self._lower:
            slots = [slot for wanted_of, slot in wishes if wanted_of is tier]
            for start in range(0, len(slots), BATCH_CHUNKS_MAX):
                self._spawn(self._promote(tier, slots[start : start + BATCH_CHUNKS_MAX]))
        for batch in batches:
            self._spawn(self._cascade(batch))
        self._signal()

    async def _promote(self, tier: Tier, slots: Sequence[Slot]) -> None:
        filled: frozenset[ChunkKey] = frozenset()
        began_s = time.monotonic()
        try:
            outcome = await tier.load([slot.key for slot in slots], self._buffers(slots))
            filled = frozenset(outcome.succeeded)
            if self._events is not None:
                bad_keys = [key for key, reason in outcome.failed.items() if reason is Failure.CORRUPT]
                self._events.removed(tier.name, bad_keys, RemoveReason.CORRUPT)
        finally:
            with self._lock:
                for slot in slots:
                    del self._since[slot]
                good = [slot for slot in slots if slot.key in filled]
                bad = [slot for slot in slots if slot.key not in filled]
                self._note_stored(self._pinned.name, [s.key for s in good if s.state is SlotState.FILLING])
                self._table.commit(good)
                self._table.drop(bad)
                self._table.unpin(bad)
                self._counters["loaded_chunks", tier.name] += len(good)
                self._counters["loaded_bytes", tier.name] += len(good) * self._pinned.slot_bytes
                self._counters["loaded_us", tier.name] += _us_since(began_s)
            self._signal()

    async def _cascade(self, slots: Sequence[Slot]) -> None:
        try:
            for tier in self._lower:
                # Asked anew for each tier, right before the call: a chunk that was invalidated while it
                # waited must not reach a tier that starts over.
                valid = [slot for slot in slots if slot.state is SlotState.READY]
                began_s = time.monotonic()
                outcome = await tier.store([slot.key for slot in valid], self._buffers(valid))
                self._note_stored(tier.name, outcome.succeeded)
                self.count("stored_us", tier.name, _us_since(began_s))
                self.count("dropped_chunks", tier.name, len(outcome.failed))
                self.count("stored_chunks", tier.name, len(outcome.succeeded))
                self.count("stored_bytes", tier.name, len(outcome.succeeded) * self._pinned.slot_bytes)
        finally:
            with self._lock:
                self._cascades_in_flight -= 1
                self._dirty.difference_update(slots)
                self._table.unpin(slots)
            self._pump()

    async def settled(self, keys: Sequence[ChunkKey]) -> None:
        """Wait until nobody fills the slots of these keys any more, at most for the deadline."""
        with self._lock:
            slots = [slot for slot in map(self._table.get, keys) if slot is not None]
        await self._settle(slots)

    async def _settle(self, slots: Sequence[Slot]) -> None:
        """Wait until none of the slots is FILLING, or the deadline has passed."""
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while any(slot.state is SlotState.FILLING for slot in slots):
                    await self._progress.wait()
        except TimeoutError:
            self.count("late_loads", self._pinned.name, 1)

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

    # --- under the lock -----------------------------------------------------------------------------

    def _pin(self, key: ChunkKey) -> Found:
        slot = self._table.get(key)
        if slot is None:
            return Found(Presence.MISS)
        presence = self._presence(slot)
        if presence is Presence.LATE:
            return Found(presence)
        self._table.pin([slot])
        return Found(presence, slot, self._pinned.name)

    def _presence(self, slot: Slot) -> Presence:
        if slot.state is SlotState.READY:
            return Presence.READY
        if slot.state is SlotState.GONE:
            return Presence.MISS
        since = self._since.get(slot)
        late = since is not None and self._clock() - since > self._load_deadline_s
        return Presence.LATE if late else Presence.PENDING

    def _promise(self, key: ChunkKey, tier: Tier) -> Found:
        # The tiers below were asked without the lock: the key may have got a slot meanwhile.
        if self._table.get(key) is not None:
            return self._pin(key)
        slots, evicted = self._table.reserve([key])
        self._note_evicted(evicted)
        if not slots:
            return Found(Presence.FULL)
        (slot,) = slots
        self._table.pin(slots)
        self._since[slot] = self._clock()
        self._wishes.append((tier, slot))
        return Found(Presence.PENDING, slot, tier.name)

    def _soil(self, slots: Sequence[Slot]) -> None:
        if not self._lower or self._stopped:
            return
        room = self._dirty_max - len(self._dirty) - self._admitted
        accepted = slots[: max(0, room)]
        self._table.pin(accepted)
        self._dirty.update(accepted)
        self._to_cascade.extend(accepted)
        self._counters["dropped_chunks", self._lower[0].name] += len(slots) - len(accepted)

    def _admits(self, count: int) -> bool:
        with self._lock:
            admits = len(self._dirty) + self._admitted + count <= self._dirty_max
            self._admitted += count if admits else 0
            return admits

    def _take_cascades(self) -> list[list[Slot]]:
        batches = []
        while self._to_cascade and not self._stopped and self._cascades_in_flight < CASCADES_IN_FLIGHT_MAX:
            count = min(BATCH_CHUNKS_MAX, len(self._to_cascade))
            batches.append([self._to_cascade.popleft() for _ in range(count)])
            self._cascades_in_flight += 1
        return batches

    def _wake_is_needed(self) -> bool:
        needed, self._pump_is_due = not self._pump_is_due, True
        return needed

    def _note_evicted(self, keys: Sequence[ChunkKey]) -> None:
        self._counters["evicted_chunks", self._pinned.name] += len(keys)
        if self._events is not None:
            self._events.removed(self._pinned.name, keys, RemoveReason.EVICTED)

    def _note_stored(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        if self._events is not None:
            self._events.stored(tier, keys)

    def _stats_of_pinned(self) -> TierStats:
        table, slot_bytes = self._table, self._pinned.slot_bytes
        used = (table.slots_count - table.free_count) * slot_bytes
        return TierStats(len(table), used, table.slots_count * slot_bytes)

    def _dirty_now(self) -> list[Slot]:
        with self._lock:
            return list(self._dirty)

    # --- without the lock ---------------------------------------------------------------------------

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

    def _buffers(self, slots: Sequence[Slot]) -> list[Buffer]:
        return [self._pinned.buffer(slot) for slot in slots]


def _us_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1_000_000)


_WHY = {Presence.MISS: Failure.MISSING, Presence.LATE: Failure.TIMEOUT, Presence.FULL: Failure.NO_SPACE}
