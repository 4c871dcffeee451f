"""The library: store and load KV chunks by key, without a server around it."""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..tiers.base import KEY_BYTES_MAX, ChunkKey, Failure, Outcome, Tier
from ..tiers.errors import ClosedError
from ..tiers.gpu import GpuTier, Tensor
from ..tiers.pinned import PinnedTier
from .chain import Chain, ChainStats
from .loop import LoopThread
from .mover import Mover
from .transfer import Job

logger = logging.getLogger(__name__)

JOBS_IN_FLIGHT_MAX = 1024  # beyond it a job is shed at once: its caller is faster than the machine
CLOSE_S = 30.0  # what close() gives the chunks that still wait for the last tier


class Direction(enum.Enum):
    STORE = enum.auto()
    LOAD = enum.auto()


class ChainSpec(Protocol):
    """Builds the tiers of a chain from a validated config and takes them down again."""

    @property
    def load_deadline_s(self) -> float:
        """How long a load may take before its chunks count as misses."""
        ...

    async def start(self, *, part_bytes: int, parts: int, identity: Mapping[str, str]) -> None:
        """Start every tier below the device, top down; on a failure the started ones are closed again."""
        ...

    @property
    def pinned(self) -> PinnedTier: ...

    @property
    def lower(self) -> Sequence[Tier]: ...

    async def close(self) -> None:
        """Close the tiers, bottom up; idempotent."""
        ...


def spec_from_config(config: str | Path | Mapping[str, Any]) -> ChainSpec:
    """Parse a tier config by the package that is installed for it.

    The engine does not know configs; the entry point ``kvtier.chain:composite`` does.

    Raises:
        ConfigError: the document is wrong; the message names the field and the fix.
    """
    (entry_point,) = entry_points(group="kvtier.chain", name="composite")
    parse: Callable[[str | Path | Mapping[str, Any]], ChainSpec] = entry_point.load()
    return parse(config)


class OffloadEngine:
    """Keeps chunks of a server's KV cache in the tiers of a config.

    Call it from any thread. `lookup`, `store` and `load` return at once and never wait for a disk; only
    `Job.wait`, `flush` and `close` wait. The blocks that a job names belong to it until it is done: do not
    write to the blocks of a store, and do not read those of a load, before that.
    """

    def __init__(self, spec: ChainSpec, namespace: Mapping[str, str] | None = None) -> None:
        self._spec = spec
        self._namespace = dict(namespace or {})
        self._loop = LoopThread()
        self._lock = threading.Lock()
        # Under the lock:
        self._jobs: dict[Job[Outcome], Direction] = {}  # in flight
        self._closed = False
        # Set once by register_kv_caches:
        self._gpu: GpuTier | None = None
        self._chain: Chain | None = None
        self._mover: Mover | None = None

    @classmethod
    def open(
        cls, config: str | Path | Mapping[str, Any], namespace: Mapping[str, str] | None = None
    ) -> OffloadEngine:
        """Open an engine on a tier config.

        Args:
            config: a tier-config document, as a path to a JSON file or as the document itself.
            namespace: all that makes two chunks with one key interchangeable: model, revision, weights,
                dtype, parallel layout. Chunks of one namespace are never served to another.

        Raises:
            ConfigError: the document is wrong; the message names the field and the fix.
        """
        return cls(spec_from_config(config), namespace)

    def register_kv_caches(self, tensors: Sequence[Tensor], *, blocks_per_chunk: int = 1) -> None:
        """Name the server's KV tensors and start the tiers.

        Args:
            tensors: each (num_blocks, ...), all on one device; block i of the cache is row i of every tensor.
            blocks_per_chunk: how many blocks one key stands for.

        Raises:
            ConfigError: the config does not fit these tensors (a capacity below one chunk, say).
            TierUnavailable: a tier cannot start; none is left running.
            ValueError: the tensors cannot be used, or others were registered before.
        """
        self._check_open()
        if self._gpu is not None:
            raise ValueError("KV caches are registered already; an engine serves one set of tensors")
        gpu = GpuTier.of_tensors(tensors, blocks_per_chunk=blocks_per_chunk)
        identity = self._namespace | _layout_fields(tensors, blocks_per_chunk)
        start = self._spec.start(part_bytes=gpu.part_bytes, parts=1, identity=identity)
        try:
            self._loop.submit(start).result()
        except BaseException:
            gpu.close_now()
            raise
        gpu.prepare(self._spec.pinned.arena)
        self._chain = Chain(
            self._spec.pinned, self._spec.lower, self._loop, load_deadline_s=self._spec.load_deadline_s
        )
        self._mover = Mover(self._chain, self._spec.pinned)
        self._gpu = gpu

    def lookup(self, keys: Sequence[ChunkKey]) -> int:
        """Count the leading keys that some tier has now."""
        found = self._ready_chain().lookup(keys)
        return found.index(False) if False in found else len(found)

    def store(self, keys: Sequence[ChunkKey], block_ids: Sequence[int]) -> Job[Outcome]:
        """Copy chunks from the device into the chain; they cascade down on their own.

        Args:
            keys: one per chunk, in prefix order, all different.
            block_ids: `blocks_per_chunk` blocks for each key, in order.

        Returns:
            A job that is done once the device's blocks are copied; its result says what became of each key.
        """
        return self._start_job(Direction.STORE, keys, block_ids)

    def load(self, keys: Sequence[ChunkKey], block_ids: Sequence[int]) -> Job[Outcome]:
        """Copy chunks from whichever tier has them into the device's blocks.

        A key that fails leaves its blocks with nothing of use: compute them. Arguments as for `store`.
        """
        return self._start_job(Direction.LOAD, keys, block_ids)

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything stored so far is durable in the last tier.

        Raises:
            TimeoutError: it took longer than `timeout` seconds; it goes on.
        """
        self.flushing().wait(timeout)

    def flushing(self) -> Job[None]:
        """`flush` as a job, for those who await."""
        self._ready_chain()
        return Job(self._loop.submit(self._flush()))

    def stats(self) -> ChainStats:
        """Return the numbers of every tier."""
        return self._ready_chain().stats()

    def close(self, timeout: float = CLOSE_S) -> None:
        """Finish the jobs in flight, bring what waits to the last tier within `timeout` seconds, and stop.

        Idempotent. What could not be brought down in time is dropped, and logged.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._loop.submit(self._close(timeout)).result()
        self._loop.close()

    def check(self) -> None:
        """Assert the integrity of the placement; for tests."""
        self._ready_chain().check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # --- on the loop thread -------------------------------------------------------------------------

    async def _flush(self) -> None:
        with self._lock:
            stores = [job for job, direction in self._jobs.items() if direction is Direction.STORE]
        await asyncio.gather(*stores, return_exceptions=True)
        await self._ready_chain().flush()

    async def _close(self, timeout_s: float) -> None:
        with self._lock:
            jobs = list(self._jobs)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*jobs, return_exceptions=True)
                if self._chain is not None:
                    await self._chain.flush()
        except TimeoutError:
            dirty = self._chain.stats().dirty_chunks if self._chain else 0
            logger.warning("closed after %.0f s with %d chunks not yet in the last tier", timeout_s, dirty)
        if self._chain is not None:
            await self._chain.stop()
        await self._spec.close()
        if self._gpu is not None:
            await self._gpu.close()

    # --- on the caller's thread ---------------------------------------------------------------------

    def _start_job(
        self, direction: Direction, keys: Sequence[ChunkKey], block_ids: Sequence[int]
    ) -> Job[Outcome]:
        self._ready_chain()
        gpu, mover = self._gpu, self._mover
        assert gpu is not None, "a ready chain has its device tier"
        assert mover is not None, "and its mover"
        _check_keys(keys)
        # Made on this thread: the window takes note of what the caller's stream has been told to do so far.
        window = gpu.window(keys, block_ids)
        move = mover.store if direction is Direction.STORE else mover.load
        with self._lock:
            shed = len(self._jobs) >= JOBS_IN_FLIGHT_MAX
            job = Job(self._loop.submit(_shed(keys) if shed else move(window, keys)))
            self._jobs[job] = direction
        job.when_done(self._forget_job)
        return job

    def _forget_job(self, job: Job[Outcome]) -> None:
        with self._lock:
            self._jobs.pop(job, None)

    def _ready_chain(self) -> Chain:
        self._check_open()
        if self._chain is None:
            raise ValueError("no KV caches yet: call register_kv_caches(tensors) first")
        return self._chain

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the engine is closed")


def _check_keys(keys: Sequence[ChunkKey]) -> None:
    for key in keys:
        if not isinstance(key, bytes) or not 0 < len(key) <= KEY_BYTES_MAX:
            raise ValueError(f"a key is 1 to {KEY_BYTES_MAX} bytes, not {key!r:.80}")
    if len(set(keys)) != len(keys):
        raise ValueError("the keys of one job must differ: two of them are equal")


def _layout_fields(tensors: Sequence[Tensor], blocks_per_chunk: int) -> dict[str, str]:
    """What about the tensors makes two chunks' bytes interchangeable, by name."""
    blocks = [f"{tensor.dtype}{list(tensor.shape[1:])}".removeprefix("torch.") for tensor in tensors]
    return {"layout": " ".join(blocks), "blocks_per_chunk": str(blocks_per_chunk)}


async def _shed(keys: Sequence[ChunkKey]) -> Outcome:
    return Outcome(failed=dict.fromkeys(keys, Failure.DROPPED))
