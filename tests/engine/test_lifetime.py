"""How an engine's tiers start and end: at once, in several threads, interrupted, over a disk that fails."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from lifetime_rig import BLOCK_BYTES, SHORT_S, WAIT_S, Call, Spec, opened, tensors

from kvtier.engine import OffloadEngine
from kvtier.engine.chain import Chain
from kvtier.engine.lifetime import Lifetime
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.errors import ClosedError, TierUnavailable


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
        engine.close()
    assert spec.disk.closed.is_set()
    assert set(spec.disk.chunks) == {b"a"}


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
