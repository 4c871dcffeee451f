"""Whether every bit comes back through an OffloadEngine on device tensors, used from several threads at once.

The arena is small, and its pages are still being page-locked when the first jobs run. Jobs are stores and
loads, some of them cancelled; a tier in memory stands for the drive. Blocks are written and read on the
caller's own stream, as a server does.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

from kvtier.engine import OffloadEngine
from kvtier.tiers.base import Tier
from kvtier.tiers.pinned import pinning
from kvtier.tiers.pinned.arena import Arena, _CudaRegistrar
from kvtier.tiers.pinned.pinning import Piece, Pinning
from kvtier.tiers.pinned.tier import PinnedTier
from kvtier.tiers.testing import MemoryTier

THREADS = 4
SLOTS = 48
LAYERS = 4
BLOCK_ELEMENTS = 16 * 1024
BLOCKS_EACH = 16  # of each thread: no two threads share a block
KEYS_EACH = 64
WAIT_S = 60.0
PIECE_S = 0.1  # page-locking of 256 MiB


@dataclass(frozen=True, slots=True)
class EngineVerdict:
    """What came of the rounds of all threads.

    Attributes:
        rounds: how many there were.
        loaded: chunks that came back.
        loaded_early: those of them that came back before all slots were page-locked.
        wrong: chunks of those that came back with other bytes.
        pinned_slots: slots that were still in use at the end.
    """

    rounds: int
    loaded: int
    loaded_early: int
    wrong: int
    pinned_slots: int

    @property
    def good(self) -> bool:
        return self.loaded > 0 and self.wrong == 0 and self.pinned_slots == 0


class MemorySpec:
    """An arena over a tier in memory."""

    unfilled: frozenset[str] = frozenset()
    may_recompute = False
    load_deadlines_s: Mapping[str, float] = {"memory": WAIT_S}

    def __init__(self) -> None:
        self._tiers: list[Tier] = []

    async def start(self, *, part_bytes: int, parts: int, identity: Mapping[str, str]) -> None:
        self._tiers = [PinnedTier(Arena.private(SLOTS, part_bytes)), MemoryTier()]

    @property
    def pinned(self) -> PinnedTier:
        pinned = self._tiers[0]
        assert isinstance(pinned, PinnedTier)
        return pinned

    @property
    def lower(self) -> Sequence[Tier]:
        return self._tiers[1:]

    async def close(self) -> None:
        while self._tiers:
            await self._tiers.pop().close()


class User(threading.Thread):
    """Stores and loads chunks whose bytes follow from their keys, in blocks of its own."""

    def __init__(
        self,
        number: int,
        engine: OffloadEngine,
        tensors: Sequence[torch.Tensor],
        pinning: Pinning,
        rounds: int,
    ) -> None:
        super().__init__(name=f"user-{number}")
        self._number, self._engine, self._tensors, self._rounds = number, engine, tensors, rounds
        self._pinning = pinning
        self._random = random.Random(number)
        self.loaded = self.loaded_early = self.wrong = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self._rounds):
                self._round()
        except BaseException as error:
            self.error = error

    def _round(self) -> None:
        first = self._number * BLOCKS_EACH
        blocks = self._random.sample(range(first, first + BLOCKS_EACH), 4)
        numbers = self._random.sample(range(KEYS_EACH), 4)
        keys = [b"user-%d-%d" % (self._number, number) for number in numbers]
        for block, number in zip(blocks, numbers, strict=True):
            self._fill(block, number)
        store = self._engine.store(keys, blocks)
        if self._random.random() < 0.2:
            store.cancel()
        store.wait_ended()
        for block in blocks:
            for tensor in self._tensors:
                tensor[block].zero_()
        load = self._engine.load(keys, blocks)
        if self._random.random() < 0.2:
            load.cancel()
            load.wait_ended()
            return
        came = set(load.wait(WAIT_S).succeeded)
        early = not self._pinning.is_whole
        for key, block, number in zip(keys, blocks, numbers, strict=True):
            if key in came:
                self.loaded += 1
                self.loaded_early += early
                self.wrong += not self._holds(block, number)

    def _fill(self, block: int, number: int) -> None:
        for layer, tensor in enumerate(self._tensors):
            tensor[block].copy_(self._bytes(layer, number, tensor.device))

    def _holds(self, block: int, number: int) -> bool:
        return all(
            torch.equal(tensor[block], self._bytes(layer, number, tensor.device))
            for layer, tensor in enumerate(self._tensors)
        )

    def _bytes(self, layer: int, number: int, device: torch.device) -> torch.Tensor:
        start = 7919 * (self._number * KEYS_EACH + number) + 31 * layer
        return (torch.arange(start, start + BLOCK_ELEMENTS, device=device) % 32749).to(torch.int16)


def judge(device: torch.device, rounds: int) -> EngineVerdict:
    """Run all users at once on an engine of its own."""
    shape = (THREADS * BLOCKS_EACH, BLOCK_ELEMENTS)
    tensors = [torch.zeros(shape, dtype=torch.int16, device=device) for _ in range(LAYERS)]
    spec = MemorySpec()
    with slow_page_locking(), OffloadEngine(spec) as engine:
        engine.register_kv_caches(tensors)  # page-locking goes on in the background
        pages = spec.pinned.arena.pinning
        users = [User(number, engine, tensors, pages, rounds) for number in range(THREADS)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        for user in users:
            if user.error is not None:
                raise user.error
        asyncio.run(_flushed(engine))
        pinned_slots = engine.stats().pinned_slots
    loaded, early, wrong = (
        sum(counts) for counts in zip(*((u.loaded, u.loaded_early, u.wrong) for u in users), strict=True)
    )
    return EngineVerdict(rounds * THREADS, loaded, early, wrong, pinned_slots)


@contextmanager
def slow_page_locking() -> Iterator[None]:
    """Page-lock a small arena in many pieces, each of which takes as long as a large one does."""
    register = _CudaRegistrar.register

    def slowly(registrar: _CudaRegistrar, piece: Piece) -> None:
        time.sleep(PIECE_S)
        register(registrar, piece)

    with patch.object(pinning, "PIECE_BYTES", 1), patch.object(_CudaRegistrar, "register", slowly):
        yield


async def _flushed(engine: OffloadEngine) -> None:
    await engine.flushing()
