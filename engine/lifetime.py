"""The life of a chain's tiers: how they start, which jobs run between them, and how they end.

The library and a server's scheduler both live in one of these, with the same steps and the same bounds.

A start and the end may meet. Everything that starts is submitted under one lock, together with the check
whether the end has begun, and the loop runs what it is given in order. So the end, which is submitted last,
finds all that got through: a start to cancel, jobs to wait for.

    new -start-> starting -> ready
     \\_____________\\__________\\__end-> ended

The end runs in a thread of its own, so an interrupt ends only the waiting for it. Each of its steps has a
deadline: a drive or device that hangs is left behind, with the memory that it may still touch.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..tiers.base import Outcome, Tier
from ..tiers.device.gpu import GpuTier
from ..tiers.errors import ClosedError
from ..tiers.pinned.tier import PinnedTier
from .bounded import ended
from .chain import Chain
from .events import EventLog
from .job import Job
from .loop import LoopThread
from .movement.flushing import FlushJob
from .movement.losses import Caller
from .movement.worth import Computing

logger = logging.getLogger(__name__)

JOBS_RUNNING_MAX = 1024  # further ones wait in order: more at a time would move nothing faster
JOBS_MAX = JOBS_RUNNING_MAX + 65536  # beyond it a job is shed: its caller is faster than the machine
STEP_S = 5.0  # for each step of the end beside the last flush; only a hang takes longer
STEPS_MAX = 6  # of these: the start, the jobs, the movement between tiers, the device, other jobs, flushes
TIERS_S = 20.0  # for closing the tiers: the spec bounds each one, and the others come after one that hangs

C = TypeVar("C", bound=Chain)
J = TypeVar("J", bound=Job[Any])
R = TypeVar("R", bound=Outcome)
T = TypeVar("T")


class Kind(enum.Enum):
    """What a job does, as far as the end treats it differently."""

    STORE = enum.auto()
    LOAD = enum.auto()
    OTHER = enum.auto()  # holds no blocks of the device; the end does not wait for its work


class ChainSpec(Protocol):
    """Builds the tiers of a chain from a validated config and takes them down again."""

    @property
    def load_deadlines_s(self) -> Mapping[str, float]:
        """How long a load from each tier below may take before its chunks count as misses."""
        ...

    @property
    def unfilled(self) -> frozenset[str]:
        """Names of the tiers below that get nothing of what a tier further down supplies."""
        ...

    @property
    def may_recompute(self) -> bool:
        """Whether chunks are left below where computing them is expected to be sooner."""
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


def chain_of(
    kind: type[C],
    spec: ChainSpec,
    events: EventLog | None,
    loop: LoopThread,
    computing: Computing | None = None,
) -> C:
    """A chain of this kind over the tiers of a spec that was started."""
    return kind(
        spec.pinned,
        spec.lower,
        loop,
        load_deadlines_s=spec.load_deadlines_s,
        unfilled=spec.unfilled,
        computing=computing if spec.may_recompute else None,
        events=events,
    )


class Start(NamedTuple):
    """A start under way, or done: whose it is, and its job."""

    caller: object
    job: Job[None]


class Ready(NamedTuple, Generic[C]):
    """What there is once the tiers have started; a server's device is in its workers' processes."""

    chain: C
    gpu: GpuTier | None


class Lifetime(Generic[C]):
    """The tiers of one chain and the jobs between them. Any thread; only `start` and `end` wait.

    Args:
        spec: builds the tiers; nobody else starts or closes it.
        make_chain: makes the chain over the spec's tiers once they have started; called on the loop thread.
    """

    def __init__(self, spec: ChainSpec, make_chain: Callable[[LoopThread], C]) -> None:
        self.loop = LoopThread()
        self._spec = spec
        self._make_chain = make_chain
        self._lock = threading.RLock()  # a job that is done already is forgotten while it starts
        # Under the lock:
        self._jobs: dict[Job[Any], Kind] = {}  # in flight
        self._starting: Start | None = None  # or started
        self._closed = False
        self._end_lock = threading.Lock()
        # Under the lock of the end:
        self._ended = threading.Event()
        # Set once, on the loop thread:
        self._ready: Ready[C] | None = None
        # On the loop thread only:
        self._turns = asyncio.Semaphore(JOBS_RUNNING_MAX)

    def start(self, open_tiers: Callable[[], Coroutine[Any, Any, None]], gpu: GpuTier | None = None) -> None:
        """Start the tiers below `gpu`, which is closed where that fails.

        Args:
            open_tiers: starts the spec's tiers; runs on the loop thread.
            gpu: the device's tier, where it is in this process.

        Raises:
            ConfigError, TierUnavailable: from the spec.
            ValueError: they were started before, or are being started.
            ClosedError: the end has begun.
        """
        caller = object()  # made first: an interrupt may hit before the job is returned
        try:
            self._begin(caller, open_tiers, gpu).wait()
        except BaseException:
            self._give_up(caller, gpu)
            raise

    def begin(self, open_tiers: Callable[[], Coroutine[Any, Any, None]], gpu: GpuTier) -> Job[None]:
        """`start` as a job. Cancelling it undoes the start.

        Raises:
            ValueError, ClosedError: as for `start`.
        """
        try:
            job = self._begin(object(), open_tiers, gpu)
        except BaseException:
            gpu.close_now()
            raise
        job.when_done(partial(_close_unused, gpu))
        return job

    def ready(self) -> Ready[C]:
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
        self.loop.check_process()
        if self._closed:
            raise ClosedError("the engine is closed")

    def move(
        self,
        kind: Kind,
        work: Callable[[C], Coroutine[Any, Any, R]],
        *,
        chunks: int,
        shed: Callable[[], R],
    ) -> Job[R]:
        """Start a job of so many chunks on the chain once it is its turn, or shed it where too many wait.

        Args:
            shed: makes the result of a job that is shed.
        """
        chain = self.ready().chain
        with self._lock:
            self.check_open()
            has_turn = len(self._jobs) < JOBS_MAX
            coroutine = self._in_turn(chain, work) if has_turn else _at_once(shed())
            job = self._started(kind, Job(coroutine, self.loop))
        if not has_turn:
            chain.count("shed_chunks", self._spec.pinned.name, chunks)
        return job

    def run(self, work: Callable[[C], Coroutine[Any, Any, T]]) -> Job[T]:
        """Start work on the chain that holds no blocks of the device; the end does not wait for it."""
        chain = self.ready().chain
        with self._lock:
            self.check_open()
            return self._started(Kind.OTHER, Job(work(chain), self.loop))

    def flush(self, caller: Caller) -> Job[None]:
        """Start a flush of everything that was stored so far; it tells `caller` of what was lost."""
        self.ready()
        with self._lock:
            self.check_open()
            stores = [job for job, kind in self._jobs.items() if kind is Kind.STORE]
            return self._started(Kind.OTHER, FlushJob(self._flush(stores, caller), self.loop))

    def end(self, timeout_s: float | None) -> None:
        """Wait for the end, which the first call begins.

        Args:
            timeout_s: for the jobs and their last flush; None is no limit.
        """
        self.loop.check_may_wait()
        if timeout_s is not None:
            timeout_s = max(0.0, timeout_s)
        with self._lock:
            self._closed = True
        if not self._ended.is_set():
            # Each call has a thread, and the first one does it: so no interrupt, wherever it hits, loses it.
            end = threading.Thread(target=self._end, args=(timeout_s,), name="kvtier-close", daemon=True)
            try:
                end.start()
            except RuntimeError:  # from Python 3.12 on, no thread starts once the interpreter ends
                self._end(timeout_s)
        self._ended.wait()

    def has_ended(self) -> bool:
        """Say whether the end has come, and not only begun."""
        return self._ended.is_set()

    def _begin(
        self, caller: object, open_tiers: Callable[[], Coroutine[Any, Any, None]], gpu: GpuTier | None
    ) -> Job[None]:
        with self._lock:
            self.check_open()
            if self._starting is not None and not self._has_failed(self._starting):
                raise ValueError("KV caches are registered already; an engine serves one set of tensors")
            self._starting = Start(caller, Job(self._start(open_tiers, gpu), self.loop))
            return self._starting.job

    def _has_failed(self, start: Start) -> bool:
        return self._ready is None and start.job.done()

    def _give_up(self, caller: object, gpu: GpuTier | None) -> None:
        """Undo a start that failed, or that nobody waits for any more; another may follow."""
        with self._lock:
            starting = self._starting
            mine = starting if starting is not None and starting.caller is caller else None
        if mine is not None:
            mine.job.cancel()
            mine.job.wait_ended()
            if self._ready is not None:  # it was through before it was given up
                return
            with self._lock:
                self._starting = None
        if gpu is not None:
            gpu.close_now()

    def _started(self, kind: Kind, job: J) -> J:
        """Let the end find a job. Call it under the lock under which it was started."""
        self._jobs[job] = kind
        job.when_done(self._forget)
        return job

    def _forget(self, job: Job[Any]) -> None:
        with self._lock:
            self._jobs.pop(job, None)

    # --- on the thread of the end -------------------------------------------------------------------

    def _end(self, timeout_s: float | None) -> None:
        with self._end_lock:
            if self._ended.is_set():
                return
            # Bounded as a whole, too: a caller's callback may block the loop itself.
            limit_s = None if timeout_s is None else timeout_s + STEPS_MAX * STEP_S + TIERS_S
            try:
                self.loop.submit(self._stop(timeout_s)).result(limit_s)
            except Exception:
                logger.exception("the engine did not close cleanly")
            finally:
                self.loop.close()
                self._ended.set()

    # --- on the loop thread -------------------------------------------------------------------------

    async def _start(self, open_tiers: Callable[[], Coroutine[Any, Any, None]], gpu: GpuTier | None) -> None:
        try:
            await open_tiers()
            self._ready = Ready(self._make_chain(self.loop), gpu)
        except BaseException:
            await self._spec.close()
            raise

    async def _in_turn(self, chain: C, work: Callable[[C], Coroutine[Any, Any, R]]) -> R:
        async with self._turns:
            return await work(chain)

    async def _flush(self, stores: Sequence[Job[Any]], caller: Caller | None) -> None:
        await _all_ended(stores)
        assert self._ready is not None, "a flush is of what has started"
        await self._ready.chain.mover.flush(caller)

    async def _stop(self, timeout_s: float | None) -> None:
        with self._lock:
            starting, jobs = self._starting, dict(self._jobs)
        if starting is not None:
            starting.job.close()
            await ended("the start", starting.job.ended(), STEP_S)
        if self._ready is None or await self._stop_moving(self._ready, jobs, timeout_s):
            await ended("closing the tiers", self._spec.close(), TIERS_S)
        else:
            logger.error("something still uses the slots: the tiers are left as they are")

    async def _stop_moving(
        self, ready: Ready[C], jobs: Mapping[Job[Any], Kind], timeout_s: float | None
    ) -> bool:
        """Bring down what can be in time, then stop all movement; returns whether nothing moves any more."""
        transfers = [job for job, kind in jobs.items() if kind is not Kind.OTHER]
        others = [job for job, kind in jobs.items() if kind is Kind.OTHER]
        if not await ended("the last flush", self._flush(transfers, None), timeout_s):
            pending_chunks = ready.chain.stats().pending_chunks
            logger.warning(
                "closed after %.0f s with %d chunks not yet in the last tier; they are dropped",
                timeout_s,
                next(reversed(pending_chunks.values()), 0),
            )
        for job in transfers:
            job.close()
        # All of them, also after one that hangs: each lets go of what it can.
        nothing_moves = all(
            [
                await ended("a job", _all_ended(transfers), STEP_S),
                await ended("the movement between tiers", ready.chain.mover.stop(), STEP_S),
                ready.gpu is None or await ended("the device", ready.gpu.close(), STEP_S),
            ]
        )
        for job in others:  # only now: a flush tells what was given up, if it can
            job.close()
        await ended("a flush or removal", _all_ended(others), STEP_S)
        await ended("the flush of a tier", ready.chain.mover.end_flushes(), STEP_S)
        return nothing_moves


def _close_unused(gpu: GpuTier, start: Job[None]) -> None:
    try:
        start.wait()
    except BaseException:  # whoever waits for the start gets it
        gpu.close_now()


async def _all_ended(jobs: Sequence[Job[Any]]) -> None:
    await asyncio.gather(*(job.ended() for job in jobs))


async def _at_once(result: T) -> T:
    return result
