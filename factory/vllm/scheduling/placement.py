"""The scheduler's side of the plugin: what each request holds, loads and stores in the chain.

vLLM asks about one key at a time and acts on the answer later in the same step. So every chunk that was found
for a request stays pinned until the request loads it or ends: nothing can evict a hit between the answer and
its use, and requests that wait for promotions cannot keep taking each other's slots. Where no slot is free
the answer is a miss, never a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TypeAlias

from ....engine.movement.placement import Found, Presence
from ....engine.movement.prompts import GroupOf, Prompt, one_group
from ....engine.server import ServerChain
from ....tiers.base import ChunkKey
from ....tiers.pinned.slots import Slot, SlotState
from .inflight import InFlight, TransferMarks
from .progress import Ends, Progress

Told: TypeAlias = Sequence[int | None] | None
"""Where the server says that chunks lie in their prompt; None where it tells nothing: they are counted."""

AHEAD_CHUNKS = 32  # asked for at once; one that is asked for in vain costs a microsecond

_NOBODY = "", 0, iter(())
_NOTHING = Found(Presence.MISS)
_NOWHERE = frozenset({Presence.MISS, Presence.LATE, Presence.FULL})


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What a store should write where: `slots[i]` for `keys[i]`; `evicted` left the pinned tier for it."""

    keys: list[ChunkKey]
    slots: list[int]
    evicted: list[ChunkKey]


class ServerPlacement:
    """What each request holds, loads and stores. One thread: the scheduler's.

    Invariant: every pin taken from the chain is in exactly one of `_holds`, `_loading` and `_inflight`, which
    has those of stores and of orphaned slots.

    A request has one prompt from its first mention to its end, over all its steps: what comes in chunk by
    chunk lies in slots in the order of the prompt.
    """

    def __init__(
        self,
        chain: ServerChain,
        marks: TransferMarks,
        progress: Progress,
        *,
        keeps_on_reset: bool = False,
        group_of: GroupOf = one_group,
        ended: Callable[[Mapping[ChunkKey, int]], object] | None = None,
    ) -> None:
        """Begin with no request.

        Args:
            ended: called with the positions of a prompt's chunks when it has ended.
        """
        self._chain = chain
        self._progress = progress
        self._keeps_on_reset = keeps_on_reset
        self._group_of = group_of
        self._ended = ended
        # Mutable state:
        self._holds: dict[str, dict[ChunkKey, Found]] = {}
        self._prompts: dict[str, Prompt] = {}
        self._running: set[str] = set()  # requests that have loaded or stored
        self._loading: dict[str, dict[ChunkKey, Found]] = {}
        self._inflight = InFlight(marks, chain.slots_count)
        # Whose lookups went ahead in this step, of how many chunks, and what comes behind those:
        self._following: tuple[str, int, Iterator[ChunkKey]] = _NOBODY

    @property
    def orphaned_count(self) -> int:
        """Slots whose transfers the server has forgotten but the workers may not have finished."""
        return self._inflight.orphaned_count

    def lookup(
        self,
        request: str,
        key: ChunkKey,
        below: Collection[str] | None = None,
        *,
        told: int | None = None,
        ends: Ends = None,
    ) -> Presence:
        """Find a chunk for a request and hold it; a chunk below is promoted once `scheduled` is called.

        Args:
            below: names of the tiers below that the request loads from; None for all.
            told: its position, where the server tells it.
        """
        presence = self._looked_up(request, key, below, told, ends)
        if presence in _NOWHERE:
            self._progress.missed(request, key)
        return presence

    def _looked_up(
        self, request: str, key: ChunkKey, below: Collection[str] | None, told: int | None, ends: Ends
    ) -> Presence:
        holds = self._holds.setdefault(request, {})
        found = holds.get(key)
        if found is None:
            prompt = self._prompt(request)
            prompt.place([key], None if told is None else [told])
            found = self._find(prompt, key, below, ends)
            if found.slot is not None:
                holds[key] = found
                if ends is not None and found.source != "pinned":
                    self._look_ahead(request, key, found.source, ends, holds)
            return found.presence
        if found.slot is None:
            return found.presence
        presence = self._chain.state_of(found.slot)
        if presence in (Presence.READY, Presence.PENDING):
            return presence
        # It failed or came too late. Remember that, or this request would ask for it again and again.
        self._chain.release([found.slot])
        holds[key] = _NOTHING
        if presence is Presence.LATE:
            self._chain.count("late_loads", found.source, 1)
        return presence

    def scheduled(self) -> None:
        """A step is planned: start the promotions it asked for, and free what no worker touches any more."""
        self._following = _NOBODY
        self._progress.step_begins()
        self._chain.start_queued()
        self.sweep()

    def step_ended(self) -> None:
        """The results of a step are there."""
        self._progress.step_ends()

    def source(self, load: str, key: ChunkKey) -> str:
        """Name the tier that supplied a chunk of a load under way; empty where it is not one."""
        return self._loading.get(load, {}).get(key, _NOTHING).source

    def prepare_load(self, request: str, keys: Collection[ChunkKey], *, load: str = "") -> list[int]:
        """Turn what the request holds into a load; release what it held beyond `keys`.

        Args:
            load: what `complete_load` will call it, where that is not the request's name.
        """
        holds, prompt = self._holds.pop(request, {}), self._prompt(request)
        self._running.add(request)
        missing = [key for key in keys if key not in holds]
        if missing:
            holds.update(zip(missing, self._chain.acquire(prompt, missing), strict=True))
        taken: dict[ChunkKey, Found] = {}
        for key in keys:
            found = holds.pop(key)
            assert found.slot is not None, "the server loads only what lookup called a hit"
            assert found.slot.state is SlotState.READY, "a hit is readable"
            taken[key] = found
        for source, chunks in Counter(found.source for found in taken.values()).items():
            self._chain.count("hits", source, chunks)
        self._let_go(holds.values())
        self._chain.used({key: found.source for key, found in taken.items()})
        self._loading.setdefault(load or request, {}).update(taken)
        self._chain.touch(prompt, list(keys))
        self._chain.count_loaded(len(taken))
        return self._inflight.load(_slots(taken.values()))

    def complete_load(self, load: str, keys: Collection[ChunkKey]) -> None:
        loading = self._loading.get(load, {})
        self._let_go([loading.pop(key) for key in keys])
        if not loading:
            self._loading.pop(load, None)

    def touch(self, request: str, keys: Sequence[ChunkKey], told: Told = None) -> None:
        """Note that a request uses chunks; that it says so again is no further use."""
        self._running.add(request)
        self._chain.touch(self._placed(request, keys, told), keys)

    def prepare_store(self, request: str, keys: Sequence[ChunkKey], told: Told = None) -> StorePlan | None:
        """Reserve slots for the chunks that have none; None where not all fit now: offer them again.

        A request that stores has started and looks up no more: what it held is released.
        """
        self.let_go(request)
        self._progress.offered(request, keys)
        self._running.add(request)
        prompt = self._placed(request, keys, told)
        prompt.starts()
        reserved = self._chain.reserve(prompt, keys)
        if reserved.refused:
            return None
        if reserved.held:
            # What has a slot already was used by this request, be it from the device's own cache.
            self._chain.touch(prompt, reserved.held)
            self._chain.used(dict.fromkeys(reserved.held, "pinned"))
        if reserved.left:
            self._chain.count("dropped_chunks", "pinned", len(reserved.left))
        indexes = self._inflight.store(reserved.slots)
        return StorePlan([slot.key for slot in reserved.slots], indexes, reserved.evicted)

    def complete_store(self, keys: Collection[ChunkKey], success: bool) -> None:
        """Commit what the workers have written, in the order of the prompt; `keys` come in any order.

        Behind a chunk that failed, nothing more of its prompt is stored: it could not be reached.
        """
        stored, bad = self._inflight.stored(keys, success)
        if bad:
            self._cut(bad)
            self._chain.abandon(bad)
        self._chain.commit_in_step(stored)

    def complete_ended_stores(self) -> None:
        """Complete the stores that the workers have finished, where the server reports that late or early."""
        ended = self._inflight.ended_stores()
        if ended:
            self.complete_store(ended, success=True)

    def let_go(self, request: str) -> None:
        """Release what lookups of the request hold."""
        self._let_go(self._holds.pop(request, {}).values())

    def finish(self, request: str) -> None:
        """End a request: all that it used was used now; its transfers may still be in flight."""
        if request in self._running:
            prompt = self._prompts[request]
            self._chain.end(prompt)
            if self._ended is not None:
                self._ended(prompt.positions)
        self.forget(request)

    def forget(self, request: str) -> None:
        """Forget a request that may have ended long ago; count what never found room."""
        self.let_go(request)
        self._progress.forget(request)
        self._running.discard(request)
        prompt = self._prompts.pop(request, None)
        if prompt is not None:
            self._chain.count("dropped_chunks", "pinned", prompt.refused_chunks)

    def reset(self) -> list[ChunkKey]:
        """Invalidate everything stored so far, as the weights may have changed; or keep it, if so configured.

        Returns the keys that left their slots. The server forgets the transfers in flight.
        """
        for request in list(self._holds):
            self.let_go(request)
        self._prompts.clear()  # those that run store anew, from their heads on
        self._progress.forget_all()
        self._running.clear()
        loading = [slot for found in self._loading.values() for slot in _slots(found.values())]
        storing = self._inflight.orphan(loading)
        self._loading.clear()
        if not self._keeps_on_reset:
            return self._chain.invalidate()
        self._chain.forget(storing)
        return []

    def sweep(self) -> None:
        """Free the orphaned slots that no worker touches any more."""
        if self._inflight.orphaned_count:
            self._chain.release(self._inflight.quiet())

    def _prompt(self, request: str) -> Prompt:
        prompt = self._prompts.get(request)
        if prompt is None:
            prompt = self._prompts[request] = self._chain.new_prompt(self._group_of)
        return prompt

    def _placed(self, request: str, keys: Sequence[ChunkKey], told: Told) -> Prompt:
        prompt = self._prompt(request)
        positions = None if told is None else [position for position in told if position is not None]
        if positions is not None and len(positions) < len(keys):
            # It could have told. So this may be no prompt, and its chunks may make room for each other.
            prompt.is_spared, positions = False, None
        prompt.place(keys, positions)
        return prompt

    def _cut(self, failed: Sequence[Slot]) -> None:
        prompts = {prompt.id: prompt for prompt in self._prompts.values()}
        for slot in failed:
            prompt = prompts.get(slot.prompt)
            if prompt is not None and (prompt.ends_at is None or slot.position < prompt.ends_at):
                prompt.ends_at = slot.position

    def _find(self, prompt: Prompt, key: ChunkKey, below: Collection[str] | None, ends: Ends) -> Found:
        found = self._chain.pin(key)
        if found.presence is not Presence.MISS:
            return found
        run_chunks = None if self._chain.is_decided(prompt) else self._progress.run_chunks(key, ends)
        return self._chain.promote(prompt, key, among=below, run_chunks=run_chunks)

    def _look_ahead(
        self,
        request: str,
        key: ChunkKey,
        source: str,
        ends: Mapping[ChunkKey, int],
        holds: dict[ChunkKey, Found],
    ) -> None:
        """The tier that has this chunk may have the next ones, which the server asks for in this step too."""
        if self._following[:2] != (request, len(ends)):
            self._following = request, len(ends), iter(ends)
        group, following = self._group_of(key), self._following[2]
        if key in following:  # which leaves what comes behind it
            ahead = takewhile(lambda one: self._group_of(one) == group, islice(following, AHEAD_CHUNKS))
            keys = [one for one in ahead if one not in holds]
            prompt = self._prompts[request]
            prompt.place(keys, [ends[one] for one in keys])
            holds.update(self._chain.promote_ahead(prompt, keys, source))

    def _let_go(self, holds: Iterable[Found]) -> None:
        slots = _slots(holds)
        if slots:
            self._chain.release(slots)


def _slots(found: Iterable[Found]) -> list[Slot]:
    return [one.slot for one in found if one.slot is not None]
