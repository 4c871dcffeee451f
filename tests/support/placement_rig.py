"""A server's scheduler over a chain of slots and a memory tier, and its workers, which the test plays."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from chain_rig import SLOT_BYTES, Rig

from kvtier.engine.movement.placement import Presence
from kvtier.engine.movement.prompts import GroupOf, one_group
from kvtier.engine.movement.rates import KNOWN_FROM_BYTES, GivenPrefill, MeasuredPrefill
from kvtier.engine.movement.worth import Computing
from kvtier.factory.vllm.scheduling.placement import ServerPlacement, StorePlan, Told
from kvtier.factory.vllm.scheduling.progress import Progress
from kvtier.tiers.base import ChunkKey
from kvtier.tiers.testing import pattern

CHUNK_TOKENS = 16


class Marks:
    """Workers that have ended what the test says they have."""

    def __init__(self) -> None:
        self.failed: set[int] = set()
        self.ended = True

    def stores_failed(self, indexes: Sequence[int]) -> list[bool]:
        return [index in self.failed for index in indexes]

    def transfers_done(self, index: int, *, stores: int, loads: int) -> bool:
        return self.ended


class Server:
    """A scheduler over a chain of `slots_count` slots."""

    def __init__(
        self,
        rig: Rig,
        group_of: GroupOf = one_group,
        ended: Callable[[Mapping[ChunkKey, int]], object] | None = None,
    ) -> None:
        self.rig = rig
        self.marks = Marks()
        self._stores = itertools.count()
        self.prefill = MeasuredPrefill()
        self.progress = Progress(self.prefill, defaultdict(lambda: CHUNK_TOKENS), group_of, rig.clock)
        self.placement = ServerPlacement(rig.chain, self.marks, self.progress, group_of=group_of, ended=ended)

    def store(self, keys: list[bytes], request: str = "", told: Told = None) -> StorePlan:
        """Store chunks; without its name, of a request that stores nothing else."""
        plan = self.prepared(keys, request, told)
        for key, slot in zip(plan.keys, plan.slots, strict=True):
            self.rig.pinned.memory[slot][:] = pattern(key, SLOT_BYTES)
        self.placement.complete_store(set(plan.keys), success=True)
        return plan

    def prepared(self, keys: list[bytes], request: str = "", told: Told = None) -> StorePlan:
        plan = self.placement.prepare_store(request or f"store {next(self._stores)}", keys, told)
        assert plan is not None, "there is room"
        return plan

    def only_below(self, keys: list[bytes]) -> None:
        for key in keys:
            self.rig.lower.chunks[key] = pattern(key, SLOT_BYTES)

    def settle(self, keys: list[bytes]) -> None:
        """End the step, and wait until what was asked for has arrived or failed."""
        self.placement.scheduled()
        slots, _ = self.rig.fetch(keys).result(5)
        self.rig.chain.release(slots)

    def pins(self) -> int:
        self.rig.drain()
        return self.rig.chain.stats().pinned_slots

    def store_in_steps(self, request: str, keys: list[bytes], step: int, told: Told = None) -> None:
        """Store a prompt as chunked prefill does, and let each step reach the tier below."""
        for start in range(0, len(keys), step):
            part = None if told is None else told[start : start + step]
            self.store(keys[start : start + step], request, part)
            self.rig.drain()  # what only its slot has may not be evicted

    def slots_hit(self, keys: list[bytes]) -> int:
        """How many leading chunks are in slots."""
        table = self.rig.pinned.table
        return sum(1 for _ in itertools.takewhile(table.is_ready, keys))

    def dropped(self) -> int:
        return self.rig.chain.stats().tiers["pinned"].counters["dropped_chunks"]


class Slow:
    """A server that computes a chunk a second, over a tier that takes so long for one as the test says."""

    def __init__(self, server: Server, chunk_s: float) -> None:
        self.server = server
        self.chain = server.rig.chain
        self.chain._advisor.computing = Computing(CHUNK_TOKENS, GivenPrefill(CHUNK_TOKENS))
        self.rate, chunks = self.chain._lower.rates["memory"], KNOWN_FROM_BYTES // SLOT_BYTES + 1
        self.rate.began(time.monotonic() - chunk_s * chunks)
        self.rate.ended(time.monotonic(), chunks * SLOT_BYTES)

    def answers(
        self, request: str, keys: list[bytes], below: Collection[str] | None = None
    ) -> list[Presence]:
        """Ask as the server does, which tells where the chunks of the prompt end."""
        ends = {key: number * CHUNK_TOKENS for number, key in enumerate(keys, start=1)}
        lookup = self.server.placement.lookup
        return [lookup(request, key, below, told=ends[key], ends=ends) for key in keys]

    def declined(self) -> int:
        return self.chain.stats().tiers["memory"].counters["declined_chunks"]
