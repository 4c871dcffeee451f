"""The chain: one placement and one mover over a pinned tier and the tiers below it.

The pinned tier is the hub. Stores from the device land in its slots and cascade to the tiers below; a chunk
that lies only below is promoted into a slot before anyone may load it. Placement changes under one lock, in
calls that never wait, so any thread may make them. Everything that waits runs on the loop thread (`mover`).

Two kinds of user work with a chain, each through a class of its own: a server's scheduler, which never waits
(`server.ServerChain`), and the library, which waits on the loop thread (`library.LibraryChain`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..tiers.base import ChunkKey, RemoveReason, Tier, TierStats
from ..tiers.histogram import Histogram
from ..tiers.pinned.slots import Slot, SlotState, SlotTier
from .events import EventLog
from .loop import LoopThread
from .movement.deadlines import Deadlines
from .movement.lower import ASKING, LowerTiers, Place
from .movement.mover import Mover
from .movement.placement import Found, Placement, Presence, Reservation
from .movement.prompts import GroupOf, Prompt, one_group
from .movement.queues import BATCH_BYTES
from .movement.transfers import Run
from .movement.worth import Advisor, Computing

COUNTED = (
    "hits",
    "misses",
    "slotless",
    "late_loads",
    "loaded_chunks",
    "loaded_bytes",
    "loaded_us",
    "stored_chunks",
    "stored_bytes",
    "stored_us",
    "dropped_chunks",
    "declined_chunks",
    "requested_chunks",
    "invalidated_chunks",
)
"""What the chain counts for every tier, from zero on. A tier's own count of such a name is not used: a
counter that came from one and then from the other could fall."""


@dataclass(frozen=True, slots=True)
class ChainStats:
    """The chain's numbers at one moment.

    Attributes:
        tiers: by tier name, pinned first. Their counters are the tier's own and, of what the chain counts
            (`COUNTED`), the chain's.
        pending_chunks: chunks that a tier below is owed and does not have yet, by its name, nearest first.
        pinned_slots: slots that somebody uses right now.
    """

    tiers: Mapping[str, TierStats]
    pending_chunks: dict[str, int]
    pinned_slots: int

    def as_dict(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {
            "tiers": {name: tier.as_dict() for name, tier in self.tiers.items()},
            "pending_chunks": dict(self.pending_chunks),
            "pinned_slots": self.pinned_slots,
        }


class Chain:
    """What both kinds of user do with a chain. Any thread; no method waits for a drive or a device.

    The chain does not own the tiers: whoever built them closes them, after `mover.stop()`.

    Attributes of the class:
        dirty_fraction: of all slots, which may be kept from eviction as the first tier below is owed them.

    Args:
        load_deadlines_s: how long a load from each tier below may take before its chunks count as late.
        unfilled: tiers below that get nothing of what a tier further down supplies.
        batch_bytes: what one call of a tier below moves at most, though a chunk at least.
        computing: what it takes to compute chunks instead of loading them; None where all are loaded.

    Attributes:
        mover: moves chunks between the slots and the tiers below; its coroutines run on the loop thread.
    """

    dirty_fraction = 0.5  # what waits for a drive may not crowd out what could hit

    def __init__(
        self,
        pinned: SlotTier,
        lower: Sequence[Tier],
        loop: LoopThread,
        *,
        load_deadlines_s: Mapping[str, float],
        unfilled: frozenset[str] = frozenset(),
        batch_bytes: int = BATCH_BYTES,
        computing: Computing | None = None,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pinned = pinned
        self._lower = LowerTiers(lower)
        self._loop = loop
        self._load_deadlines_s = load_deadlines_s
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        # Under the lock:
        self._placement = Placement(
            pinned,
            [tier.name for tier in lower],
            dirty_fraction=self.dirty_fraction,
            load_deadlines_s=load_deadlines_s,
            unfilled=unfilled,
            batch_bytes=batch_bytes,
            events=events,
            clock=clock,
        )
        self._advisor = Advisor(self._lower.rates, chunk_bytes=pinned.slot_bytes, computing=computing)
        self._room_waiters = 0  # tasks that wait for a slot, and are woken when a pin is returned
        self.mover = Mover(self._placement, self._lock, pinned, self._lower, loop)
        if events is not None:
            events.watch(lower)

    @property
    def slots_count(self) -> int:
        return self._pinned.table.slots_count

    def new_prompt(self, group_of: GroupOf = one_group) -> Prompt:
        """A prompt of which nothing is known yet, for the calls that take one."""
        return self._placement.new_prompt(group_of)  # draws a number, which takes no lock

    def acquire(
        self, prompt: Prompt, keys: Sequence[ChunkKey], deadlines: Deadlines | None = None
    ) -> list[Found]:
        """Pin what is in a slot; start the promotion of what lies below, in the order of `keys`.

        The caller returns each slot with `release`.

        Args:
            deadlines: of the load that this is for: a tier whose deadline has passed is not read.
        """
        prompt.place(keys)
        with self._lock:
            found = [self._placement.pin(key) for key in keys]
            epoch = self._placement.epoch
        try:
            missed = [index for index, one in enumerate(found) if one.presence is Presence.MISS]
            there = [keys[index] for index in missed]
            places = dict(zip(there, self._lower.find_all(there), strict=True))
            with self._lock:
                if self._placement.epoch == epoch:  # not invalidated since the tiers below were asked
                    promoted = self._promoted(prompt, places, deadlines)
                    for index in missed:
                        found[index] = promoted[keys[index]]
                self._placement.count_refused(found)
                # Also what others queued and have not started: the caller may wait for it.
                wakeup = self.mover.request_queued()
        except BaseException:
            self.release([one.slot for one in found if one.slot is not None])
            raise
        self.mover.send(wakeup)
        return found

    def state_of(self, slot: Slot, deadlines: Deadlines | None = None) -> Presence:
        """Look at an acquired slot again.

        Args:
            deadlines: of the load that waits for it; without, it is late by the time since it was acquired.
        """
        if slot.state is SlotState.READY:
            return Presence.READY
        with self._lock:
            return self._placement.presence(slot, deadlines)

    def release(self, slots: Iterable[Slot]) -> None:
        """Return the caller's pin on each slot."""
        with self._lock:
            self._placement.table.unpin(slots)
            wakeup = self._room_waiters > 0 and self.mover.request(Run.NOW)
        self.mover.send(wakeup)

    def touch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> None:
        """Note that the prompt used the chunks; tiers below that lack some of them are owed these."""
        with self._lock:
            self._placement.touch(prompt, keys)
            wakeup = self.mover.request_owed(Run.AFTER_STEP)
        self.mover.send(wakeup)

    def used(self, sources: Mapping[ChunkKey, str]) -> None:
        """Tell the tiers below which chunks were used, each but the one named as the chunk's source."""
        by_source: dict[str, list[ChunkKey]] = {}
        for key, source in sources.items():
            by_source.setdefault(source, []).append(key)
        for source, keys in by_source.items():
            self._lower.used(keys, source)

    def reserve(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> Reservation:
        """Take a slot for each of `keys` that has none, evicting nothing that the store names.

        Where not all fits now, nothing is taken: the store is refused, and offered again later. Where the
        prompt cannot fit at all, its leading chunks are taken. The caller fills the slots, then calls
        `commit` or `abandon`.
        """
        with self._lock:
            reserved = self._placement.reserve(prompt, keys)
            wakeup = self.mover.request_owed(Run.AFTER_STEP)
        self.mover.send(wakeup)
        return reserved

    def commit(self, slots: Sequence[Slot]) -> None:
        """Make filled slots readable; the tiers below are owed them."""
        with self._lock:
            self._placement.commit(slots)
            wakeup = self.mover.request(Run.NOW)
        self.mover.send(wakeup)

    def abandon(self, slots: Sequence[Slot]) -> None:
        """Give back slots that could not be filled: no lookup finds them from now on."""
        if not slots:
            return
        with self._lock:
            self._placement.abandon(slots)
            wakeup = self.mover.request(Run.NOW)
        self.mover.send(wakeup)

    def invalidate(self, reason: RemoveReason = RemoveReason.INVALIDATED) -> list[ChunkKey]:
        """Hide everything stored before now, in every tier; returns the keys that left their slots.

        Where it was only requested, the weights are the same, and the tiers below go on as they were.
        Slots in use become free when their users return them. Until the tiers below have confirmed, they
        answer nothing: a chunk of the old weights is never served to the new ones.
        """
        with self._lock:
            self._lower.invalidations += 1  # first: who sees the new epoch must ask no tier that is not told
            gone = self._placement.drop_all()
        self._loop.submit(self.mover.invalidate(reason))
        return gone

    def count_loaded(self, chunks: int) -> None:
        """Count chunks that were copied out of their slots, onto the device."""
        with self._lock:
            self._placement.tally.moved("loaded", self._pinned.name, chunks)

    def count(self, name: str, tier: str, amount: int) -> None:
        """Add to a counter that the chain's user keeps, so that all are read in one place."""
        with self._lock:
            self._placement.tally.count(name, tier, amount)

    def stats(self) -> ChainStats:
        """Return the numbers of every tier."""
        with self._lock:
            counters, histograms = dict(self._placement.tally.counters), self._placement.tally.histograms()
            pending, pinned = self._placement.cascades.pending, self._placement.table.pinned_count
            pinned_stats, rates = self._placement.stats(), self._advisor.rates_per_s(self._pinned.name)
        if self._events is not None:
            counters["dropped_events", self._pinned.name] = self._events.dropped_count
        tiers = {self._pinned.name: pinned_stats, **{tier.name: tier.stats() for tier in self._lower.all}}
        return ChainStats(with_counts(tiers, counters, rates, histograms), pending, pinned)

    def check(self) -> None:
        """Assert the chain's integrity; for tests."""
        with self._lock:
            self._placement.check()

    def _promoted(
        self, prompt: Prompt, places: Mapping[ChunkKey, Place], deadlines: Deadlines | None
    ) -> dict[ChunkKey, Found]:
        """Queue the promotions of chunks that are not in slots. Call it under the lock."""
        found: dict[ChunkKey, Found] = {}
        below: dict[ChunkKey, Tier] = {}
        for key, place in places.items():
            if place is None or place is ASKING:
                found[key] = Found(Presence.MISS if place is None else Presence.ASKING)
            elif deadlines is not None and self._clock() > deadlines.at_s(place.name):
                found[key] = Found(Presence.LATE, None, place.name)
            else:
                below[key] = place
        return found | self._queued(prompt, below) if below else found

    def _queued(self, prompt: Prompt, below: Mapping[ChunkKey, Tier]) -> dict[ChunkKey, Found]:
        found = self._placement.promote(prompt, below)
        for key, tier in below.items():
            presence, _, source = found[key]
            if presence is Presence.PENDING and source == tier.name:  # else another has promoted it before
                self._lower.rates[tier.name].queued_bytes += self._pinned.slot_bytes
        return found


def with_counts(
    tiers: Mapping[str, TierStats],
    counts: Mapping[tuple[str, str], int],
    rates: Mapping[str, Mapping[str, int]] | None = None,
    histograms: Mapping[str, Mapping[str, Histogram]] | None = None,
) -> dict[str, TierStats]:
    """The tiers' numbers with the chain's counts, which are by counter and tier, among their counters.

    Args:
        rates: what is measured of each tier, by its name, to go among its gauges.
        histograms: how long calls of each tier took, by its name.
    """
    zeros = dict.fromkeys(COUNTED, 0)
    own = {name: {**stats.counters, **zeros} for name, stats in tiers.items()}
    for (counter, name), count in counts.items():
        own[name][counter] = count
    gauges = {name: {**stats.gauges, **(rates or {}).get(name, {})} for name, stats in tiers.items()}
    times = {name: {**stats.histograms, **(histograms or {}).get(name, {})} for name, stats in tiers.items()}
    return {
        name: replace(stats, counters=own[name], gauges=gauges[name], histograms=times[name])
        for name, stats in tiers.items()
    }
