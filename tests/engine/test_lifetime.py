"""How an engine's tiers start and end: at once, in several threads, interrupted, over a disk that fails."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lifetime_rig import BLOCK_BYTES, BLOCKS, WAIT_S, Disk, Spec, opened, tensors

from kvtier.engine import OffloadEngine, lifetime, loop
from kvtier.engine.chain import Chain
from kvtier.engine.job import Job
from kvtier.engine.library import LibraryChain
from kvtier.engine.lifetime import Kind, Lifetime
from kvtier.tiers.base import Buffer, Failure, Outcome, RemoveReason
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.errors import ClosedError, KvtierError, TierUnavailable
from kvtier.tiers.settled import settled

SHORT_S = 0.05  # a deadline that a test waits for


@pytest.fixture
def spec() -> Iterator[Spec]:
    spec = Spec()
    yield spec
    spec.disk.lets_go.set()


@pytest.fixture
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "STEP_S", SHORT_S)
    monkeypatch.setattr(lifetime, "TIERS_S", SHORT_S)
    monkeypatch.setattr(loop, "JOIN_S", SHORT_S)


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


def test_of_two_who_register_at_once_the_second_is_refused(spec: Spec) -> None:
    spec.may_start.clear()
    engine = OffloadEngine(spec)
    first = Call(engine.register_kv_caches, tensors())
    assert spec.starting.wait(WAIT_S)
    with pytest.raises(ValueError, match="registered already"):
        engine.register_kv_caches(tensors())
    spec.may_start.set()
    assert first.end() is None
    with pytest.raises(ValueError, match="registered already"):
        engine.register_kv_caches(tensors())
    assert spec.starts == 1
    assert engine.lookup([b"a"]) == 0
    engine.close()


def test_a_start_that_failed_may_be_tried_again(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus: list[GpuTier] = []
    start = Lifetime.start

    def noted(life: Lifetime[Any], open_tiers: Any, gpu: GpuTier) -> None:
        gpus.append(gpu)
        start(life, open_tiers, gpu)

    monkeypatch.setattr(Lifetime, "start", noted)
    engine = OffloadEngine(spec)
    spec.error = TierUnavailable("disk", "no such drive")
    with pytest.raises(TierUnavailable):
        engine.register_kv_caches(tensors())
    spec.error = None
    engine.register_kv_caches(tensors())
    assert [gpu.closed for gpu in gpus] == [True, False]
    engine.close()
    assert spec.starts == 2


def test_a_close_ends_a_start_that_is_under_way(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    spec.may_start.clear()
    engine = OffloadEngine(spec)
    start = Call(engine.register_kv_caches, tensors())
    assert spec.starting.wait(WAIT_S)
    engine.close()
    assert isinstance(start.end(), ClosedError)
    assert caplog.text == ""


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A process that a shell began in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_ends_a_start(spec: Spec) -> None:
    spec.may_start.clear()
    engine = OffloadEngine(spec)
    interrupt = Call(_interrupt_main, lambda: engine._lifetime._starting is not None)
    with pytest.raises(KeyboardInterrupt):
        engine.register_kv_caches(tensors())
    interrupt.end()
    assert spec.closes == spec.starts, "what had started is closed"
    spec.may_start.set()
    engine.register_kv_caches(tensors())
    engine.close()


def test_a_closed_engine_refuses_everything(spec: Spec) -> None:
    engine = opened(spec)
    engine.close()
    for call in (
        lambda: engine.register_kv_caches(tensors()),
        lambda: engine.lookup([b"a"]),
        lambda: engine.store([b"a"], [0]),
        engine.flush,
        engine.stats,
    ):
        with pytest.raises(ClosedError):
            call()


def test_a_disk_that_fails_is_logged_and_the_rest_is_closed(
    spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(spec)
    engine.store([b"a"], [0]).wait(WAIT_S)
    spec.disk.fails = True
    engine.close()
    assert "the last flush failed: disk: the drive refused" in caplog.text
    assert spec.disk.closed.is_set()


@pytest.mark.usefixtures("_short_steps")
def test_a_disk_that_hangs_is_left_behind_with_the_memory_it_may_touch(
    spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(spec)
    spec.disk.lets_go.clear()
    engine.store([b"a"], [0]).wait(WAIT_S)
    assert spec.disk.stores.wait(WAIT_S)
    engine.close(SHORT_S)
    engine.close()
    assert "with 1 chunks not yet in the last tier" in caplog.text
    assert "the movement between tiers did not end" in caplog.text
    assert len(spec.tiers) == 2, "neither the disk nor the arena was closed under its hands"


@pytest.mark.usefixtures("_short_steps")
def test_a_callback_that_blocks_does_not_hold_a_close(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    engine = opened(spec)
    gpu = engine._lifetime.ready().gpu
    blocks, unblocked = threading.Event(), threading.Event()

    def callback() -> None:
        blocks.set()
        assert unblocked.wait(WAIT_S)

    engine._lifetime.loop.call_soon(callback)  # as that of a job does
    assert blocks.wait(WAIT_S)
    engine.close(SHORT_S)
    assert "did not close cleanly" in caplog.text
    unblocked.set()
    assert gpu is not None
    gpu.close_now()


def test_a_second_close_waits_for_the_first(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    engine = opened(spec)
    spec.disk.lets_go.clear()
    engine.store([b"a"], [0]).wait(WAIT_S)
    closed_at_return: list[bool] = []

    def close() -> None:
        engine.close()
        closed_at_return.append(spec.disk.closed.is_set())

    calls = [Call(close), Call(close)]
    spec.disk.lets_go.set()
    assert [call.end() for call in calls] == [None, None]
    assert closed_at_return == [True, True]
    assert caplog.text == ""


@pytest.mark.usefixtures("_interruptible")
def test_a_close_after_an_interrupted_one_resumes(spec: Spec) -> None:
    engine = opened(spec)
    spec.disk.lets_go.clear()
    engine.store([b"a"], [0]).wait(WAIT_S)
    interrupt = Call(_interrupt_main, lambda: engine._lifetime._closed)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    interrupt.end()
    assert not spec.disk.closed.is_set()
    spec.disk.lets_go.set()
    engine.close()
    assert spec.disk.closed.is_set()
    assert set(spec.disk.chunks) == {b"a"}


def test_what_waits_is_refused_on_the_engines_own_thread(spec: Spec) -> None:
    engine = opened(spec)
    refused: list[str] = []
    caches = tensors()
    done = threading.Event()

    def callback() -> None:
        for call in (engine.flush, engine.close, lambda: engine.register_kv_caches(caches)):
            try:
                call()
            except (RuntimeError, ValueError) as error:
                refused.append(str(error))
        done.set()

    engine._lifetime.loop.call_soon(callback)  # as that of a job does
    assert done.wait(WAIT_S)
    assert len(refused) == 3
    assert all("own thread" in reason for reason in refused)
    engine.close()


def test_a_job_that_does_not_end_in_time_is_cancelled(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    spec.load_deadlines_s = {"disk": 60 * WAIT_S}
    engine = opened(spec)
    chain = engine._lifetime.ready().chain
    held = chain.reserve(chain.new_prompt(), [b"held-%d" % i for i in range(8)]).slots
    job = engine.store([b"a"], [0])  # waits for a slot
    engine.close(SHORT_S)
    assert job.done()
    assert "the last flush did not end" in caplog.text
    assert "a job did not end" not in caplog.text
    assert spec.disk.closed.is_set()
    chain.abandon(held)


def _interrupt_main(when: Callable[[], bool]) -> None:
    """Once it rests in its wait: an interrupt inside the locks of the standard library would break those."""
    main = threading.main_thread().ident or 0
    while not (when() and _rests(main)):
        time.sleep(0)
    signal.pthread_kill(main, signal.SIGINT)


def _rests(thread: int) -> bool:
    seen = set()
    for _ in range(20):
        frame = sys._current_frames()[thread]
        seen.add((id(frame), frame.f_lasti))
        time.sleep(0.001)
    return len(seen) == 1


def test_an_end_comes_though_no_thread_starts_any_more(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends, from Python 3.12 on."""
    engine = opened(spec)
    engine.store([b"a"], [0]).wait(WAIT_S)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr("asyncio.to_thread", lambda function, *rest: _at_once(function, *rest))
        engine.close()
    assert spec.disk.closed.is_set()
    assert set(spec.disk.chunks) == {b"a"}


async def _at_once(function: Callable[..., Any], *rest: Any) -> Any:
    return function(*rest)


def test_a_second_start_that_is_refused_leaves_the_first_alone(spec: Spec) -> None:
    """Also where the device is in other processes, as a server's is."""
    life: Lifetime[Chain] = Lifetime(
        spec, lambda loop: Chain(spec.pinned, spec.lower, loop, load_deadlines_s=spec.load_deadlines_s)
    )
    spec.may_start.clear()
    open_tiers = partial(spec.start, part_bytes=BLOCK_BYTES, parts=1, identity={})
    first = Call(life.start, open_tiers)
    assert spec.starting.wait(WAIT_S)
    with pytest.raises(ValueError, match="registered already"):
        life.start(open_tiers)
    spec.may_start.set()
    assert first.end() is None
    assert life.ready().gpu is None
    life.end(WAIT_S)
    assert spec.starts == 1


@pytest.mark.parametrize("timeout", [None, 0, -1, 30.0])
def test_a_close_takes_any_timeout_and_closes_the_tiers(
    spec: Spec, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(spec)
    keys = [b"k%d" % block for block in range(BLOCKS)]
    engine.store(keys, range(BLOCKS)).wait(WAIT_S)
    engine.close(timeout)
    assert spec.disk.closed.is_set()
    assert "did not close cleanly" not in caplog.text
    if timeout is None or timeout > 0:
        assert set(spec.disk.chunks) == set(keys)
        assert caplog.text == ""


def test_jobs_beyond_those_that_run_wait_for_their_turn_in_order(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "JOBS_RUNNING_MAX", 2)
    engine = opened(spec)
    began: list[int] = []
    ends = threading.Event()

    def job(number: int) -> Job[Outcome]:
        async def work(chain: LibraryChain) -> Outcome:
            began.append(number)
            await settled(asyncio.to_thread(ends.wait, WAIT_S))
            return Outcome()

        return engine._lifetime.move(Kind.STORE, work, chunks=1, shed=Outcome)

    jobs = [job(number) for number in range(20)]
    engine._lifetime.run(lambda chain: asyncio.sleep(0)).wait(WAIT_S)  # the loop has been round
    assert began == [0, 1]
    jobs[5].cancel()
    ends.set()
    for number, one in enumerate(jobs):
        one.wait_ended()
        assert one.done()
        assert number == 5 or one.wait(WAIT_S) == Outcome()
    assert began == [number for number in range(20) if number != 5]
    engine.close()


def test_a_burst_of_jobs_all_succeed_or_are_counted(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "JOBS_RUNNING_MAX", 3)
    engine = opened(spec)
    jobs = [engine.store([b"%d" % number], [number % BLOCKS]) for number in range(300)]
    assert [job.wait(WAIT_S).succeeded for job in jobs] == [(b"%d" % number,) for number in range(300)]
    assert "shed_chunks" not in {k for k, v in engine.stats().tiers["pinned"].counters.items() if v}
    monkeypatch.setattr(lifetime, "JOBS_MAX", 4)
    spec.disk.lets_go.clear()
    chain = engine._lifetime.ready().chain
    jobs = [engine.load([b"l%d" % number, b"m%d" % number], [0, 1]) for number in range(50)]
    shed = [job for job in jobs if Failure.DROPPED in job.wait(WAIT_S).failed.values()]
    assert engine.stats().tiers["pinned"].counters.get("shed_chunks", 0) == 2 * len(shed)
    spec.disk.lets_go.set()
    assert chain is engine._lifetime.ready().chain
    engine.close()


class Waiting(NamedTuple):
    """A way to wait for something of an engine, over a disk that never answers."""

    name: str
    wait: Callable[[OffloadEngine], Any]


async def _awaited(job: Job[Any]) -> Any:
    return await job


WAYS = [
    Waiting("flush", lambda engine: engine.flush()),
    Waiting("await flushing", lambda engine: asyncio.run(_awaited(engine.flushing()))),
    Waiting("remove", lambda engine: engine.remove([b"a"]).wait()),
]


class Held(Disk):
    """A disk whose every call lasts until it is cancelled."""

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        self.stores.set()
        await asyncio.Event().wait()
        raise AssertionError("it never comes")

    async def flush(self) -> None:
        await asyncio.Event().wait()

    async def remove(self, keys: Sequence[bytes], reason: RemoveReason) -> None:
        await asyncio.Event().wait()


@pytest.mark.usefixtures("_short_steps")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_who_waits_while_another_thread_closes_learns_that_it_was_closed(way: Waiting) -> None:
    spec = Spec()
    spec.disk = Held()
    engine = opened(spec)
    engine.store([b"a"], [0]).wait(WAIT_S)
    assert spec.disk.stores.wait(WAIT_S)
    jobs = engine._lifetime._jobs
    waits = Call(way.wait, engine)
    while not jobs:  # the call has begun
        time.sleep(0)
    engine.close(SHORT_S)
    assert isinstance(waits.end(), KvtierError)


@pytest.mark.usefixtures("_short_steps")
def test_a_job_that_is_cut_short_by_a_close_says_so(spec: Spec) -> None:
    spec.load_deadlines_s = {"disk": 60 * WAIT_S}
    engine = opened(spec)
    chain = engine._lifetime.ready().chain
    held = chain.reserve(chain.new_prompt(), [b"held-%d" % i for i in range(8)]).slots
    job = engine.store([b"a"], [0])  # waits for a slot
    engine.close(SHORT_S)
    with pytest.raises(ClosedError):
        job.wait(WAIT_S)
    chain.abandon(held)


STUCK = """
import sys, threading
sys.path.insert(0, {support!r})
import lifetime_rig
from lifetime_rig import Spec, opened
from kvtier.engine import lifetime, loop

lifetime.STEP_S = lifetime.TIERS_S = loop.JOIN_S = 0.05
lifetime_rig.WAIT_S = None
spec = Spec()
engine = opened(spec)
spec.disk.lets_go.clear()
engine.store([b"a"], [0]).wait(10)
assert spec.disk.stores.wait(10)
engine.close(0.05)
print("closed", flush=True)
"""


@pytest.mark.slow
def test_a_process_ends_though_a_call_of_a_tier_never_does() -> None:
    """Such a tier of another package waits in a thread of the loop's own executor."""
    script = STUCK.format(support=str(Path(__file__).parents[1] / "support"))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    assert ended.stdout == "closed\n"


def test_the_steps_of_an_end_over_a_stuck_drive_take_some_seconds_in_all() -> None:
    """The movement does not end, the loop's thread is left behind, and all others are quick."""
    assert lifetime.STEP_S + loop.JOIN_S <= 8
