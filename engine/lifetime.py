"""The life of an engine's tiers: how they start, what is under way between them, and how they end.

A start and the end may meet. All that starts is submitted under one lock, together with the look at whether
the end has begun, and the loop takes what it is given in order. So the end, which is submitted last, finds
everything that got through: a start to cancel, jobs to wait for.

    new -start-> starting -> ready
     \\_____________\\__________\\__end-> ended

The end runs in a thread of its own, so that an interrupt ends only the waiting for it. Each of its steps has
a deadline: a disk or device that hangs is left behind, with the memory that it may still touch.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple, Protocol

from ..tiers.base import ChunkKey, Failure, Outcome, Tier
from ..tiers.device.gpu import DeviceBlocks, GpuTier
from ..tiers.errors import ClosedError
from ..tiers.pinned.tier import PinnedTier
from .bounded import ended
from .chain import Chain
from .home import Home
from .job import Job
from .loop import LoopThread
from .mover import Mover

logger = logging.getLogger(__name__)

JOBS_IN_FLIGHT_MAX = 1024  # beyond it a job is shed at once: its caller is faster than the machine
STEP_S = 10.0  # for each step of the end beside the last flush; only what hangs takes longer
STEPS_MAX = 5  # of these: the start, the jobs, the movement between tiers, the device, the tiers


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


class Start(NamedTuple):
    """Who starts, and the job of it."""

    gpu: GpuTier
    job: Job[None]


class Ready(NamedTuple):
    """What there is once the tiers have started."""

    gpu: GpuTier
    chain: Chain
    mover: Mover


class Lifetime:
    """The tiers of one engine and the jobs between them. Any thread; only `start` and `end` wait."""

    def __init__(self, spec: ChainSpec) -> None:
        self.home = Home(LoopThread())
        self._spec = spec
        self._lock = threading.Lock()
        # Under the lock:
        self._jobs: dict[Job[Outcome], Direction] = {}  # in flight
        self._starting: Start | None = None  # or started
        self._closed = False
        self._end_lock = threading.Lock()
        # Under the lock of the end:
        self._ended = threading.Event()
        # Set once, on the loop thread:
        self._ready: Ready | None = None

    def start(self, gpu: GpuTier, identity: Mapping[str, str]) -> None:
        """Start the tiers below `gpu`, which is closed where that fails.

        Raises:
            ConfigError, TierUnavailable: from the spec.
            ValueError: they were started before, or are being started.
            ClosedError: the end has begun.
        """
        try:
            self._begin(gpu, identity).wait()
        except BaseException as error:
            self._give_up(gpu)
            if isinstance(error, CancelledError):
                raise ClosedError("the engine was closed while its tiers started") from None
            raise

    def ready(self) -> Ready:
        """Return what has started.

        Raises:
            ValueError: nothing has.
            ClosedError: the end has begun.
        """
        self.check_open()
        if self._ready is None:
            raise ValueError("no KV caches yet: call register_kv_caches(tensors) first")
        return self._ready

    def check_open(self) -> None:
        """Raise ClosedError where the end has begun."""
        self.home.check_process()
        if self._closed:
            raise ClosedError("the engine is closed")

    def move(self, direction: Direction, blocks: DeviceBlocks, keys: Sequence[ChunkKey]) -> Job[Outcome]:
        """Start a job between the device's blocks and the chain."""
        mover = self.ready().mover
        move = mover.store if direction is Direction.STORE else mover.load
        with self._lock:
            self.check_open()
            shed = len(self._jobs) >= JOBS_IN_FLIGHT_MAX
            job = Job(_shed(keys) if shed else move(blocks, keys), self.home)
            self._jobs[job] = direction
        job.when_done(self._forget)
        return job

    def flush(self) -> Job[None]:
        """Start a flush of everything that was stored so far."""
        self.ready()
        with self._lock:
            self.check_open()
            stores = [job for job, direction in self._jobs.items() if direction is Direction.STORE]
            return Job(self._flush(stores), self.home)

    def end(self, timeout_s: float) -> None:
        """Wait for the end, which the first call begins; `timeout_s` is for the jobs and their last flush."""
        self.home.check_may_wait()
        with self._lock:
            self._closed = True
        if not self._ended.is_set():
            # Each call has a thread, and the first one does it: so no interrupt, wherever it hits, loses it.
            threading.Thread(target=self._end, args=(timeout_s,), name="kvtier-close", daemon=True).start()
        self._ended.wait()

    def has_ended(self) -> bool:
        """Say whether the end has come, and not only begun."""
        return self._ended.is_set()

    def _begin(self, gpu: GpuTier, identity: Mapping[str, str]) -> Job[None]:
        with self._lock:
            self.check_open()
            if self._starting is not None:
                raise ValueError("KV caches are registered already; an engine serves one set of tensors")
            self._starting = Start(gpu, Job(self._start(gpu, identity), self.home))
            return self._starting.job

    def _give_up(self, gpu: GpuTier) -> None:
        """Leave nothing of a start that failed or that nobody waits for any more; another may follow."""
        with self._lock:
            mine = self._starting if self._starting is not None and self._starting.gpu is gpu else None
        if mine is not None:
            mine.job.cancel()
            mine.job.settle()
            if self._ready is not None:  # it was through before it was given up
                return
            with self._lock:
                self._starting = None
        gpu.close_now()

    def _forget(self, job: Job[Outcome]) -> None:
        with self._lock:
            self._jobs.pop(job, None)

    # --- on the thread of the end -------------------------------------------------------------------

    def _end(self, timeout_s: float) -> None:
        with self._end_lock:
            if self._ended.is_set():
                return
            try:
                # A bound once more, for a caller's callback that blocks the loop itself.
                self.home.loop.submit(self._stop(timeout_s)).result(timeout_s + STEPS_MAX * STEP_S)
            except Exception:
                logger.exception("the engine did not close cleanly")
            finally:
                self.home.loop.close()
                self._ended.set()

    # --- on the loop thread -------------------------------------------------------------------------

    async def _start(self, gpu: GpuTier, identity: Mapping[str, str]) -> None:
        spec = self._spec
        try:
            await spec.start(part_bytes=gpu.part_bytes, parts=1, identity=identity)
            gpu.prepare(spec.pinned.arena)
        except BaseException:
            await spec.close()
            raise
        chain = Chain(spec.pinned, spec.lower, self.home.loop, load_deadline_s=spec.load_deadline_s)
        self._ready = Ready(gpu, chain, Mover(chain, spec.pinned))

    async def _flush(self, stores: Sequence[Job[Outcome]]) -> None:
        await asyncio.gather(*stores, return_exceptions=True)
        assert self._ready is not None, "a flush is of what has started"
        await self._ready.chain.flush()

    async def _stop(self, timeout_s: float) -> None:
        with self._lock:
            starting, jobs = self._starting, list(self._jobs)
        if starting is not None:
            starting.job.cancel()
            await ended("the start", _settled([starting.job]), STEP_S)
        if self._ready is None or await self._stop_moving(self._ready, jobs, timeout_s):
            await ended("closing the tiers", self._spec.close(), STEP_S)
        else:
            logger.error("something still uses the slots: the tiers are left as they are")

    async def _stop_moving(self, ready: Ready, jobs: Sequence[Job[Outcome]], timeout_s: float) -> bool:
        """Bring down what can be in time, then stop all movement; returns whether nothing moves any more."""
        gpu, chain, _ = ready
        if not await ended("the last flush", self._flush(jobs), timeout_s):
            dirty = chain.stats().dirty_chunks
            logger.warning("closed after %.0f s with %d chunks not yet in the last tier", timeout_s, dirty)
        for job in jobs:
            job.cancel()
        # All of them, also after one that hangs: each lets go of what it can.
        return all(
            [
                await ended("a job", _settled(jobs), STEP_S),
                await ended("the movement between tiers", chain.stop(), STEP_S),
                await ended("the device", gpu.close(), STEP_S),
            ]
        )


async def _settled(jobs: Sequence[Job[Any]]) -> None:
    await asyncio.gather(*jobs, return_exceptions=True)


async def _shed(keys: Sequence[ChunkKey]) -> Outcome:
    return Outcome(failed=dict.fromkeys(keys, Failure.DROPPED))
