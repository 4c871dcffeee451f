"""What the scheduler's calls into kvtier cost by CPU time, without a server around them and without a drive.

    python benchmarks/server_cost.py [--policy NAME] [--requests N] [--runs N]

64 requests at a time look up a prefix of 12 chunks, load it, store the rest of their prompt, and then a chunk
every eight steps. The tier below answers at once and keeps no bytes. So the figures are Python's work on the
scheduler's thread, which delays a step; the loop's thread shares the interpreter with it.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import checkout  # noqa: F401 - makes kvtier importable
from rich.console import Console
from rich.table import Table

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement.placement import Presence
from kvtier.engine.movement.rates import MeasuredPrefill
from kvtier.engine.server import ServerChain
from kvtier.factory.vllm.scheduling.placement import ServerPlacement
from kvtier.factory.vllm.scheduling.progress import Progress
from kvtier.tiers.base import Buffer, ChunkKey, Outcome
from kvtier.tiers.null import NullTier
from kvtier.tiers.pinned.eviction import POLICIES
from kvtier.tiers.pinned.slots import Slot, SlotTable

SLOTS = 4096
AT_ONCE = 64
PREFIXES = 1000  # three times what the slots hold
PREFIX_CHUNKS = 12
PROMPT_CHUNKS = 16
CHUNKS = 20
STEPS = 40  # of one request
STEPS_PER_CHUNK = 8
BETWEEN_STEPS_S = 0.0005  # the loop's thread has the interpreter meanwhile
GROUP = bytes(4)  # of layers: all chunks are of one


def group_of(key: ChunkKey) -> bytes:
    return key[-len(GROUP) :]


class Slots:
    """A pinned tier without memory."""

    name = "pinned"
    slot_bytes = 64 << 10

    def __init__(self, policy: str) -> None:
        self.table = SlotTable(SLOTS, POLICIES[policy](SLOTS))
        self._buffer = memoryview(bytearray(1))

    def buffer(self, slot: Slot) -> Buffer:
        return self._buffer


class Known(NullTier):
    """Has every chunk that it was given, and none of its bytes."""

    def __init__(self) -> None:
        super().__init__("drive")
        self._keys: set[ChunkKey] = set()

    def lookup(self, keys: Sequence[ChunkKey]) -> list[bool]:
        return [key in self._keys for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        self._keys.update(keys)
        return Outcome(tuple(keys))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return Outcome(tuple(keys))


class NoWorkers:
    """Copies that have ended, and never fail."""

    def stores_failed(self, indexes: Sequence[int]) -> list[bool]:
        return [False] * len(indexes)

    def transfers_done(self, index: int, *, stores: int, loads: int) -> bool:
        return True


@dataclass(slots=True)
class Request:
    name: str
    keys: list[ChunkKey]
    ends: dict[ChunkKey, int]  # of the chunks of the prompt, as vLLM tells them
    hits: int = 0
    steps: int = 0
    stored: int = 0
    is_admitted: bool = False
    is_loading: bool = False
    storing: list[ChunkKey] = field(default_factory=list)


class Scheduler:
    """Calls the placement as vLLM's scheduler does, and notes what each call takes on its own thread."""

    def __init__(self, placement: ServerPlacement, rng: random.Random) -> None:
        self._placement, self._rng = placement, rng
        self._prefixes = [self._keys(PREFIX_CHUNKS) for _ in range(PREFIXES)]
        self._names = 0
        self.took_ns: Counter[str] = Counter()

    def run(self, requests: int) -> None:
        left, live = requests, list[Request]()
        while left or live:
            count = min(left, AT_ONCE - len(live))
            live += [self._request() for _ in range(count)]
            left -= count
            for request in live:
                self._step(request)
            live = [request for request in live if request.steps <= STEPS]
            self._timed("scheduled", self._placement.scheduled)
            time.sleep(BETWEEN_STEPS_S)

    def _keys(self, count: int) -> list[ChunkKey]:
        return [self._rng.randbytes(32) + GROUP for _ in range(count)]

    def _request(self) -> Request:
        self._names += 1
        keys = self._rng.choice(self._prefixes) + self._keys(CHUNKS - PREFIX_CHUNKS)
        ends = {key: number for number, key in enumerate(keys[:PROMPT_CHUNKS], start=1)}
        return Request(str(self._names), keys, ends)

    def _step(self, request: Request) -> None:
        if request.is_loading:
            hits = set(request.keys[: request.hits])
            self._timed("complete_load", self._placement.complete_load, request.name, hits)
            request.is_loading = False
        elif request.is_admitted:
            self._decode(request)
        elif self._look_up(request):
            request.is_admitted = True
            request.is_loading = request.hits > 0
            if request.is_loading:
                hits = request.keys[: request.hits]
                self._timed("prepare_load", self._placement.prepare_load, request.name, hits)

    def _look_up(self, request: Request) -> bool:
        """Count the hits; False where some of them are still on their way."""
        request.hits, is_ready = 0, True
        lookup, ends = self._placement.lookup, request.ends
        for key in request.keys[:PREFIX_CHUNKS]:
            found = self._timed("lookup", lookup, request.name, key, told=ends[key], ends=ends)
            if found not in (Presence.READY, Presence.PENDING):
                break
            is_ready &= found is Presence.READY
            request.hits += 1
        return is_ready

    def _decode(self, request: Request) -> None:
        self._complete(request)
        request.steps += 1
        end = min(CHUNKS, PROMPT_CHUNKS + (request.steps - 1) // STEPS_PER_CHUNK)
        if end > request.stored:
            told = range(request.stored + 1, end + 1)
            keys = request.keys[request.stored : end]
            plan = self._timed("prepare_store", self._placement.prepare_store, request.name, keys, told)
            if plan is not None:
                request.stored, request.storing = end, plan.keys
        if request.steps > STEPS:
            self._complete(request)
            self._timed("finish", self._placement.finish, request.name)

    def _complete(self, request: Request) -> None:
        if request.storing:
            self._timed("complete_store", self._placement.complete_store, set(request.storing), True)
            request.storing = []

    def _timed(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        began_ns = time.thread_time_ns()
        result = call(*arguments, **named)
        self.took_ns[name] += time.thread_time_ns() - began_ns
        return result


def measured(policy: str, requests: int) -> dict[str, float]:
    """Microseconds of CPU a request, by call."""
    loop = LoopThread()
    chain = ServerChain(Slots(policy), [Known()], loop, load_deadlines_s={})
    progress = Progress(MeasuredPrefill(), {GROUP: 1}, group_of)
    placement = ServerPlacement(chain, NoWorkers(), progress, group_of=group_of)
    scheduler = Scheduler(placement, random.Random(1_609))
    scheduler.run(requests)  # until the slots are full, and the drive has the prefixes
    scheduler.took_ns.clear()
    gc.collect()
    gc.freeze()
    scheduler.run(requests)
    chain.check()
    loop.close()
    took_us = {name: took_ns / requests / 1000 for name, took_ns in scheduler.took_ns.items()}
    return {**took_us, "all": sum(took_us.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", choices=sorted(POLICIES), default="reuse")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    runs = [measured(options.policy, options.requests) for _ in range(options.runs)]
    table = Table("call", "CPU µs a request", "lowest", "highest")
    for name in runs[0]:
        values = [run[name] for run in runs]
        table.add_row(name, *(f"{of(values):.0f}" for of in (statistics.median, min, max)))
    Console().print(table)


if __name__ == "__main__":
    main()
