"""A job: when it is done, who may wait for it, and what ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from lifetime_rig import WAIT_S

from kvtier.engine.job import Job
from kvtier.engine.loop import LoopThread
from kvtier.tiers.errors import ClosedError
from kvtier.tiers.settled import settled


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


class Copy:
    """A copy that goes on until `ends` is set, whoever cancels it."""

    def __init__(self) -> None:
        self.began, self.ends = threading.Event(), threading.Event()

    async def run(self) -> str:
        await settled(asyncio.to_thread(self._copy))
        return "copied"

    def _copy(self) -> None:
        self.began.set()
        assert self.ends.wait(WAIT_S)


def test_a_cancelled_job_is_done_only_once_nothing_copies_any_more(loop: LoopThread) -> None:
    copy = Copy()
    job = Job(copy.run(), loop)
    assert copy.began.wait(WAIT_S)
    job.cancel()
    Job(asyncio.sleep(0), loop).wait(WAIT_S)  # the loop has been round
    assert not job.done()
    copy.ends.set()
    job.wait_ended()
    with pytest.raises(CancelledError):
        job.wait(WAIT_S)


def test_a_job_that_is_cancelled_before_its_first_step_does_nothing(loop: LoopThread) -> None:
    blocked, blocks, copy = threading.Event(), threading.Event(), Copy()

    def block() -> None:
        blocked.set()
        assert blocks.wait(WAIT_S)

    loop.call_soon(block)
    assert blocked.wait(WAIT_S)
    job = Job(copy.run(), loop)
    job._end_with(asyncio.CancelledError())
    blocks.set()
    job.wait_ended()
    assert not copy.began.is_set()


def test_the_engines_own_thread_may_not_wait_for_a_job_that_is_not_done(loop: LoopThread) -> None:
    copy = Copy()
    job = Job(copy.run(), loop)

    async def wait() -> None:
        job.wait()

    async def settle() -> None:
        job.wait_ended()

    for work in (wait(), settle()):
        with pytest.raises(RuntimeError, match="own thread"):
            Job(work, loop).wait(WAIT_S)
    copy.ends.set()
    assert job.wait(WAIT_S) == "copied"


def test_a_callback_may_ask_for_the_result_that_it_was_called_for(loop: LoopThread) -> None:
    results: list[str] = []
    called, copy = threading.Event(), Copy()
    job = Job(copy.run(), loop)

    def callback(done: Job[str]) -> None:
        results.append(done.wait())
        called.set()

    job.when_done(callback)
    copy.ends.set()
    assert called.wait(WAIT_S)
    assert results == ["copied"]


def test_of_a_cancelled_and_a_closed_job_each_waiter_learns_which(loop: LoopThread) -> None:
    """Also where both come: what came first counts."""
    copies = [Copy() for _ in range(4)]
    jobs = [Job(copy.run(), loop) for copy in copies]
    for copy in copies:
        assert copy.began.wait(WAIT_S)
    cancelled, closed, cancelled_first, closed_first = jobs
    cancelled.cancel()
    closed.close()
    cancelled_first.cancel()
    cancelled_first.close()
    closed_first.close()
    closed_first.cancel()
    for copy in copies:
        copy.ends.set()
    for job in (cancelled, cancelled_first):
        with pytest.raises(CancelledError):
            job.wait(WAIT_S)
    for job in (closed, closed_first):
        with pytest.raises(ClosedError):
            job.wait(WAIT_S)


async def test_who_awaits_a_closed_job_is_not_taken_for_cancelled(loop: LoopThread) -> None:
    copy = Copy()
    job = Job(copy.run(), loop)
    assert copy.began.wait(WAIT_S)
    job.close()
    copy.ends.set()
    with pytest.raises(ClosedError):
        await job


async def test_a_job_that_fails_after_whoever_awaited_its_end_has_left_is_no_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrap, wrapped = asyncio.wrap_future, list[Any]()

    def noted(future: Any) -> Any:
        wrapped.append(wrap(future))
        return wrapped[-1]

    monkeypatch.setattr(asyncio, "wrap_future", noted)
    thread, copy = LoopThread(), Copy()
    job = Job(copy.run(), thread)
    await asyncio.to_thread(copy.began.wait, WAIT_S)
    waiting = asyncio.ensure_future(job.ended())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    left = wrapped[-1]
    job.close()
    copy.ends.set()
    with pytest.raises(ClosedError):
        await job  # the loop here hears of it after `left` has
    assert left.done()
    assert not left._log_traceback, "else it is logged when it is collected"
    await asyncio.to_thread(thread.close)
