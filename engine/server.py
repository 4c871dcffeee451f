"""The chain as a server's scheduler uses it: from any thread, without ever waiting."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..tiers.base import ChunkKey, Tier
from ..tiers.pinned.slots import Slot
from .chain import Chain
from .movement.lower import ASKING
from .movement.placement import Found, Presence
from .movement.prompts import Prompt
from .movement.transfers import Run


class ServerChain(Chain):
    """A chain whose user asks chunk by chunk within a step and never waits.

    `pin` and `promote` answer at once. What a step queued begins to move with `start_queued`, when the step
    asks for nothing more, or `transfers.AFTER_STEP_S` later: a move that starts within a step delays it.
    """

    def pin(self, key: ChunkKey) -> Found:
        """Pin the chunk's slot; a miss where it has none, which is not counted."""
        with self._lock:
            found = self._placement.pin(key)
            if found.presence is Presence.LATE:
                self._placement.count_refused([found])
        return found

    def promote(
        self,
        prompt: Prompt,
        key: ChunkKey,
        *,
        among: Collection[str] | None = None,
        run_chunks: int | None = None,
    ) -> Found:
        """Find a chunk without a slot in the tiers below, pin a slot for it and queue its promotion.

        Where it is expected to be sooner to compute what the prompt has below, it is a miss.

        Args:
            among: names of the tiers that may supply it; None for all.
            run_chunks: of the prompt from this chunk on, where the server knows.
        """
        epoch = self._placement.epoch
        place = self._lower.find(key, among)
        now_s = self._clock()
        with self._lock:
            if self._placement.epoch != epoch:
                place = None  # invalidated since the tiers below were asked
            if (
                place is not None
                and place is not ASKING
                and self._declines(prompt, key, place.name, run_chunks)
            ):
                return Found(Presence.MISS)
            found = self._promoted(prompt, {key: place}, None)[key]
            if found.presence is not Presence.ASKING:
                self._placement.count_refused([found])
                return found
            if prompt.asks_since_s is None:
                prompt.asks_since_s = now_s
            if now_s - prompt.asks_since_s <= self._placement.load_deadline_s:
                return found
            found = Found(Presence.MISS)
            self._placement.count_refused([found])
        return found

    def promote_ahead(self, prompt: Prompt, keys: Sequence[ChunkKey], source: str) -> dict[ChunkKey, Found]:
        """Promote more of a run, of which a chunk was just promoted: as long as the same tier has the next.

        To ask for many chunks at once costs little more than to ask for one. What is not answered here, the
        user asks for chunk by chunk.

        Args:
            keys: what follows in the prompt; chunks among these that have a slot are left out.
            source: name of the tier.

        Returns:
            What was promoted, pinned.
        """
        epoch = self._placement.epoch
        keys = self.without_slot(keys)
        places = self._lower.find_all(keys)
        run: dict[ChunkKey, Tier] = {}
        for key, place in zip(keys, places, strict=True):
            if place is None or place is ASKING or place.name != source or len(run) >= prompt.loads:
                break
            run[key] = place
        with self._lock:
            if self._placement.epoch != epoch or not run:
                return {}  # invalidated since the tiers below were asked
            found = {key: one for key, one in self._queued(prompt, run).items() if one.slot is not None}
            prompt.loads -= len(found)
        return found

    def is_decided(self, prompt: Prompt) -> bool:
        """Whether the length of a run decides nothing any more."""
        return self._advisor.is_decided(prompt)

    def commit_in_step(self, slots: Sequence[Slot]) -> None:
        """Make filled slots readable; after the step the tiers below are owed them, and they move."""
        with self._lock:
            self._placement.note(slots)
            wakeup = self.mover.request(Run.AFTER_STEP)
        self.mover.send(wakeup)

    def start_queued(self) -> None:
        """Start moving what was queued: the step asks for nothing more."""
        with self._lock:
            wakeup = self.mover.request_queued()
        self.mover.send(wakeup)

    def end(self, prompt: Prompt) -> None:
        """The prompt ends: what it used becomes its line again, where other prompts took chunks of it.

        It is no further use: tiers below are owed nothing for it.
        """
        keys = list(prompt.positions)
        with self._lock:
            self._placement.table.touch(prompt.id, keys, prompt.place(keys))

    def without_slot(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Those of the keys that have no slot, not even one that is being filled."""
        with self._lock:
            return [key for key in keys if self._placement.table.get(key) is None]

    def forget(self, slots: Sequence[Slot]) -> None:
        """Hide the slots from every lookup; the caller keeps its pins until nothing touches them."""
        with self._lock:
            self._placement.table.drop(slots)

    def _declines(self, prompt: Prompt, key: ChunkKey, tier: str, run_chunks: int | None) -> bool:
        """Say whether a chunk that a tier has is computed instead; counts it once. Call it under the lock."""
        if self._advisor.lets(prompt, tier, run_chunks):
            return False
        if run_chunks is not None and not prompt.declined:
            self._advisor.computes(run_chunks)
        if key not in prompt.declined:
            prompt.declined.add(key)
            self._placement.tally.count("declined_chunks", tier)
        return True
