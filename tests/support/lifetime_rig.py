"""A lifetime over memory, with the start and the tier below in the test's hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kvtier.engine.engine import OffloadEngine
from kvtier.tiers.base import Buffer, Outcome, Tier
from kvtier.tiers.errors import TierError
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.tier import PinnedTier
from kvtier.tiers.settled import settled
from kvtier.tiers.testing import MemoryTier

SLOTS = 8
BLOCKS = 16
BLOCK_BYTES = 4096
WAIT_S = 10.0
SHORT_S = 0.05  # a deadline that a test waits for


class Disk(MemoryTier):
    """A tier below that can hang in its thread, as a drive does, and fail to sync.

    Attributes:
        lets_go: while cleared, every store is stuck; not even a cancellation ends it.
        stores: set once a store has begun.
        fails: whether a flush fails.
        closed: set once it is closed.
    """

    def __init__(self) -> None:
        super().__init__("disk")
        self.lets_go, self.stores, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.lets_go.set()
        self.fails = False

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        self.stores.set()
        await settled(asyncio.to_thread(self.lets_go.wait, WAIT_S))
        return await super().store(keys, buffers)

    async def flush(self) -> None:
        if self.fails:
            raise TierError(self.name, "the drive refused")

    async def close(self) -> None:
        self.closed.set()


class Spec:
    """Starts an arena and a disk, once `may_start` is set.

    Attributes:
        starting: set once a start waits for that.
        error: what a start fails with.
        starts, closes: how often each was called.
    """

    unfilled: frozenset[str] = frozenset()
    may_recompute = False

    def __init__(self) -> None:
        self.load_deadlines_s: Mapping[str, float] = {"disk": WAIT_S}
        self.disk = Disk()
        self.tiers: list[Tier] = []
        self.may_start, self.starting = threading.Event(), threading.Event()
        self.may_start.set()
        self.error: Exception | None = None
        self.starts = self.closes = 0

    async def start(self, *, part_bytes: int, parts: int, identity: Mapping[str, str]) -> None:
        self.starts += 1
        self.starting.set()
        while not self.may_start.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.tiers = [PinnedTier(Arena.private(SLOTS, part_bytes)), self.disk]

    @property
    def pinned(self) -> PinnedTier:
        pinned = self.tiers[0]
        assert isinstance(pinned, PinnedTier)
        return pinned

    @property
    def lower(self) -> Sequence[Tier]:
        return self.tiers[1:]

    async def close(self) -> None:
        self.closes += 1
        while self.tiers:
            await self.tiers.pop().close()


def tensors() -> list[torch.Tensor]:
    return [torch.zeros((BLOCKS, BLOCK_BYTES), dtype=torch.uint8)]


def opened(spec: Spec) -> OffloadEngine:
    engine = OffloadEngine(spec)
    engine.register_kv_caches(tensors())
    return engine


class Call:
    """A call on a thread of its own, and what it raised."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, *arguments))
        self._thread.start()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.error
