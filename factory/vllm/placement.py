"""The scheduler's side of the plugin: what each request holds, loads and stores in the chain.

vLLM asks about one key at a time and acts on the answer later in the same step. So every chunk that was found
for a request stays pinned until the request loads it or ends: nothing can evict a hit between the answer and
its use, and requests that wait for promotions cannot keep taking each other's slots. Where no slot is free
the answer is a miss, never a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from ...engine.movement.placement import Found, Presence
from ...engine.movement.prompts import GroupOf, Prompt, one_group
from ...engine.server import ServerChain
from ...tiers.base import ChunkKey
from ...tiers.pinned.slots import Slot, SlotState

Told: TypeAlias = Sequence[int | None] | None
"""Where the server says that chunks lie in their prompt; None where it tells nothing: they are counted."""

_NOT_FOR_THIS_REQUEST = Found(Presence.MISS)


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What a store should write where: `slots[i]` for `keys[i]`; `evicted` left the pinned tier for it."""

    keys: list[ChunkKey]
    slots: list[int]
    evicted: list[ChunkKey]


class Tiers(NamedTuple):
    """Which tiers a request wants to load from. A slot may carry what only comes from below."""

    pinned: bool
    below: bool


EVERY_TIER = Tiers(pinned=True, below=True)


class TransferMarks(Protocol):
    """What the workers leave in the arena for the scheduler to read."""

    def stores_failed(self, indexes: Sequence[int]) -> Sequence[bool]:
        """Say for each slot whether the last store into it failed on some rank."""
        ...

    def transfers_done(self, index: int, *, stores: int, loads: int) -> bool:
        """Say whether every rank has ended this many stores and loads of a slot, counted modulo 2**32."""
        ...


class ServerPlacement:
    """What each request holds, loads and stores. One thread: the scheduler's.

    Invariant: every pin taken from the chain is in exactly one of `_holds`, `_loading`, `_storing` and
    `_orphaned`.

    A request has one prompt from its first mention to its end, over all its steps: what comes in chunk by
    chunk lies in slots in the order of the prompt.
    """

    def __init__(
        self,
        chain: ServerChain,
        marks: TransferMarks,
        *,
        keeps_on_reset: bool = False,
        group_of: GroupOf = one_group,
    ) -> None:
        self._chain = chain
        self._marks = marks
        self._keeps_on_reset = keeps_on_reset
        self._group_of = group_of
        # Mutable state:
        self._holds: dict[str, dict[ChunkKey, Found]] = {}
        self._prompts: dict[str, Prompt] = {}
        self._running: set[str] = set()  # requests that have loaded or stored
        self._loading: dict[str, dict[ChunkKey, Found]] = {}
        self._storing: dict[ChunkKey, tuple[int, Slot]] = {}
        self._orphaned: list[Slot] = []
        self._stores_submitted = 0
        self._stores_issued = [0] * chain.slots_count  # no array of numpy's: a few change at a time
        self._loads_issued = [0] * chain.slots_count

    @property
    def orphaned_count(self) -> int:
        """Slots whose transfers the server has forgotten but the workers may not have finished."""
        return len(self._orphaned)

    def lookup(
        self, request: str, key: ChunkKey, tiers: Tiers = EVERY_TIER, *, told: int | None = None
    ) -> Presence:
        """Find a chunk for a request and hold it; a chunk below is promoted once `scheduled` is called.

        Args:
            told: its position, where the server tells it.
        """
        holds = self._holds.setdefault(request, {})
        found = holds.get(key)
        if found is None:
            prompt = self._prompt(request)
            prompt.place([key], None if told is None else [told])
            found = self._find(prompt, key, tiers)
            if found.slot is not None:
                holds[key] = found
            return found.presence
        if found.slot is None:
            return found.presence
        presence = self._chain.state_of(found.slot)
        if presence in (Presence.READY, Presence.PENDING):
            return presence
        # It failed or came too late. Remember that, or this request would ask for it again and again.
        self._chain.release([found.slot])
        holds[key] = _NOT_FOR_THIS_REQUEST
        if presence is Presence.LATE:
            self._chain.count("late_loads", found.source, 1)
        return presence

    def scheduled(self) -> None:
        """End a step: start the promotions it asked for, and free what no worker touches any more."""
        self._chain.start_queued()
        self.sweep()

    def source(self, load: str, key: ChunkKey) -> str:
        """Name the tier that supplied a chunk of a load under way; empty where it is not one."""
        return self._loading.get(load, {}).get(key, _NOT_FOR_THIS_REQUEST).source

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
        indexes = [slot.index for slot in _slots(taken.values())]
        for index in indexes:
            self._loads_issued[index] += 1
        return indexes

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
        self._running.add(request)
        prompt = self._placed(request, keys, told)
        reserved = self._chain.reserve(prompt, keys)
        if reserved.refused:
            return None
        if reserved.held:
            # What has a slot already was used by this request, be it from the device's own cache.
            self._chain.touch(prompt, reserved.held)
            self._chain.used(dict.fromkeys(reserved.held, "pinned"))
        if reserved.left:
            self._chain.count("dropped_chunks", "pinned", len(reserved.left))
        for slot in reserved.slots:
            self._stores_submitted += 1
            self._storing[slot.key] = (self._stores_submitted, slot)
        indexes = [slot.index for slot in reserved.slots]
        for index in indexes:
            self._stores_issued[index] += 1
        return StorePlan([slot.key for slot in reserved.slots], indexes, reserved.evicted)

    def complete_store(self, keys: Collection[ChunkKey], success: bool) -> None:
        """Commit what the workers have written, in the order of the prompt; `keys` come in any order.

        Behind a chunk that failed, nothing more of its prompt is stored: it could not be reached.
        """
        slots = [slot for _, slot in sorted(self._storing.pop(key) for key in keys)]
        failed = self._marks.stores_failed([slot.index for slot in slots])
        bad = [slot for slot, is_bad in zip(slots, failed, strict=True) if is_bad or not success]
        if bad:
            self._cut(bad)
            self._chain.abandon(bad)
            slots = [slot for slot in slots if slot not in bad]
        self._chain.commit_in_step(slots)

    def complete_ended_stores(self) -> None:
        """Complete the stores that the workers have finished, where the server reports that late or early."""
        ended = [key for key, (_, slot) in self._storing.items() if self._is_quiet(slot.index)]
        if ended:
            self.complete_store(ended, success=True)

    def let_go(self, request: str) -> None:
        """Release what lookups of the request hold."""
        self._let_go(self._holds.pop(request, {}).values())

    def finish(self, request: str) -> None:
        """End a request: all that it used was used now; its transfers may still be in flight."""
        if request in self._running:
            self._chain.end(self._prompts[request])
        self.forget(request)

    def forget(self, request: str) -> None:
        """Forget a request that may have ended long ago; count what never found room."""
        self.let_go(request)
        self._running.discard(request)
        prompt = self._prompts.pop(request, None)
        if prompt is not None:
            self._chain.count("dropped_chunks", "pinned", prompt.refused_chunks)

    def reset(self) -> list[ChunkKey]:
        """Invalidate everything stored so far, as the weights may have changed; or keep it, if so configured.

        Returns the keys that left their slots. The server forgets the transfers in flight and never
        completes them, while workers may still read and write their slots. Those slots are orphaned: they
        stay pinned until the workers' own counters say that they are done.
        """
        for request in list(self._holds):
            self.let_go(request)
        self._prompts.clear()  # those that run store anew, from their heads on
        self._running.clear()
        storing = [slot for _, slot in self._storing.values()]
        self._orphaned += storing
        for loading in self._loading.values():
            self._orphaned += _slots(loading.values())
        self._storing.clear()
        self._loading.clear()
        if not self._keeps_on_reset:
            return self._chain.invalidate()
        self._chain.forget(storing)
        return []

    def sweep(self) -> None:
        """Free the orphaned slots that no worker touches any more."""
        if not self._orphaned:
            return
        quiet = [slot for slot in self._orphaned if self._is_quiet(slot.index)]
        self._orphaned = [slot for slot in self._orphaned if slot not in quiet]
        self._chain.release(quiet)

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

    def _find(self, prompt: Prompt, key: ChunkKey, tiers: Tiers) -> Found:
        if not tiers.pinned and not (tiers.below and self._chain.lookup_below(key)):
            return _NOT_FOR_THIS_REQUEST
        found = self._chain.pin(key)
        if found.presence is not Presence.MISS:
            return found
        if tiers.below:
            return self._chain.promote(prompt, key)
        self._chain.count("misses", "pinned", 1)
        return found

    def _is_quiet(self, index: int) -> bool:
        stores, loads = self._stores_issued[index], self._loads_issued[index]
        return self._marks.transfers_done(index, stores=stores, loads=loads)

    def _let_go(self, holds: Iterable[Found]) -> None:
        slots = _slots(holds)
        if slots:
            self._chain.release(slots)


def _slots(found: Iterable[Found]) -> list[Slot]:
    return [one.slot for one in found if one.slot is not None]
