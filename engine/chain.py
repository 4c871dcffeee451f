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

from ..tiers.base import ChunkKey, Tier, TierStats
from ..tiers.pinned.slots import Slot, SlotState, SlotTier
from .events import EventLog
from .loop import LoopThread
from .lower import LowerTiers
from .mover import Mover, Run
from .placement import Found, Placement, Presence, Reservation
from .prompts import GroupOf, Prompt, one_group

NO_DEADLINE_S = 10.0  # for chains without a drive, where nothing can be slow, and tiers that name none

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
        pending_chunks: chunks in slots that are not yet stored in a tier below, by that tier's name, nearest
            first.
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

    Args:
        load_deadlines_s: how long a load from each tier below may take before its chunks count as late.
        unfilled: tiers below that get nothing of what a tier further down supplies.

    Attributes:
        mover: moves chunks between the slots and the tiers below; its coroutines run on the loop thread.
    """

    def __init__(
        self,
        pinned: SlotTier,
        lower: Sequence[Tier],
        loop: LoopThread,
        *,
        load_deadlines_s: Mapping[str, float],
        unfilled: frozenset[str] = frozenset(),
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pinned = pinned
        self._lower = LowerTiers(lower)
        self._loop = loop
        self._load_deadlines_s = load_deadlines_s
        self._load_deadline_s = max(load_deadlines_s.values(), default=NO_DEADLINE_S)
        self._unfilled = unfilled
        self._lock = threading.Lock()
        # Under the lock:
        self._placement = Placement(
            pinned,
            below=lower[0].name if lower else None,
            load_deadline_s=self._load_deadline_s,
            events=events,
            clock=clock,
        )
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

    def acquire(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> list[Found]:
        """Pin what is in a slot; start the promotion of what lies below, in the order of `keys`.

        The caller returns each slot with `release`.
        """
        prompt.place(keys)
        with self._lock:
            found = [self._placement.pin(key) for key in keys]
            epoch = self._placement.epoch
        missed = [index for index, one in enumerate(found) if one.presence is Presence.MISS]
        tiers = self._lower.find_all([keys[index] for index in missed])
        with self._lock:
            is_valid = self._placement.epoch == epoch  # not invalidated since the tiers below were asked
            for index, tier in zip(missed, tiers, strict=True):
                if is_valid and tier is not None:
                    found[index] = self._placement.promote(prompt, keys[index], tier)
            self._placement.count_refused(found)
            # Also what others queued and have not started: the caller may wait for it.
            wakeup = self.mover.request_queued()
        self.mover.send(wakeup)
        return found

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
            wakeup = self._room_waiters > 0 and self.mover.request(Run.NOW)
        self.mover.send(wakeup)

    def touch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> None:
        """Tell the eviction policy that the prompt used the chunks."""
        with self._lock:
            self._placement.touch(prompt, keys)

    def used(self, sources: Mapping[ChunkKey, str]) -> None:
        """Tell the tiers below which chunks were used, each but the one named as the chunk's source."""
        by_source: dict[str, list[ChunkKey]] = {}
        for key, source in sources.items():
            by_source.setdefault(source, []).append(key)
        for source, keys in by_source.items():
            self._lower.used(keys, source)

    def reserve(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> Reservation:
        """Take slots for those of `keys` that have none, as many leading ones as there is room for.

        The caller fills them, then calls `commit` or `abandon`.
        """
        with self._lock:
            return self._placement.reserve(prompt, keys)

    def commit(self, slots: Sequence[Slot], *, admitted: int = 0, run: Run = Run.NOW) -> None:
        """Make filled slots readable and queue them for the tiers below.

        Where more wait for those tiers than may, the trailing ones stay in their slots only.

        Args:
            admitted: places in the queue that the caller was given and now gives back, used or not.
            run: when the mover may start with them.
        """
        with self._lock:
            self._placement.commit(slots, admitted)
            wakeup = self.mover.request(run)
        self.mover.send(wakeup)

    def abandon(self, slots: Sequence[Slot]) -> None:
        """Give back slots that could not be filled: no lookup finds them from now on."""
        if not slots:
            return
        with self._lock:
            self._placement.abandon(slots)
            wakeup = self.mover.request(Run.NOW)
        self.mover.send(wakeup)

    def count_loaded(self, chunks: int) -> None:
        """Count chunks that were copied out of their slots, onto the device."""
        with self._lock:
            self._placement.count_moved("loaded", self._pinned.name, chunks)

    def count(self, name: str, tier: str, amount: int) -> None:
        """Add to a counter that the chain's user keeps, so that all are read in one place."""
        with self._lock:
            self._placement.counters[name, tier] += amount

    def stats(self) -> ChainStats:
        """Return the numbers of every tier."""
        with self._lock:
            counters = dict(self._placement.counters)
            dirty, pinned = self._placement.dirty_count, self._placement.table.pinned_count
            pinned_stats = self._placement.stats()
        tiers = {self._pinned.name: pinned_stats, **{tier.name: tier.stats() for tier in self._lower.all}}
        return ChainStats(
            with_counts(tiers, counters), {tier.name: dirty for tier in self._lower.all}, pinned
        )

    def check(self) -> None:
        """Assert the chain's integrity; for tests."""
        with self._lock:
            self._placement.check()


def with_counts(
    tiers: Mapping[str, TierStats], counts: Mapping[tuple[str, str], int]
) -> dict[str, TierStats]:
    """The tiers' numbers with the chain's counts, which are by counter and tier, among their counters."""
    zeros = dict.fromkeys(COUNTED, 0)
    own = {name: {**stats.counters, **zeros} for name, stats in tiers.items()}
    for (counter, name), count in counts.items():
        own[name][counter] = count
    return {name: replace(stats, counters=own[name]) for name, stats in tiers.items()}
