"""The loop's thread: what is handed to it, from where, and when it runs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from kvtier.engine.loop import LoopThread
from kvtier.tiers.errors import ClosedError

WAIT_S = 10.0


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


def test_functions_run_in_the_order_of_the_calls(loop: LoopThread) -> None:
    ran: list[int] = []
    done = threading.Event()
    for number in range(100):
        loop.call_soon(lambda number=number: ran.append(number))  # type: ignore[misc]
    loop.call_soon(done.set)
    assert done.wait(WAIT_S)
    assert ran == list(range(100))


def test_the_loop_itself_may_ask_for_a_function(loop: LoopThread) -> None:
    done = threading.Event()
    loop.call_soon(lambda: loop.call_soon(done.set))
    assert done.wait(WAIT_S)


def test_what_was_asked_for_before_the_close_runs_and_nothing_after_it() -> None:
    loop, ran = LoopThread(), []
    loop.call_soon(lambda: ran.append("before"))
    loop.close()
    loop.call_soon(lambda: ran.append("after"))
    loop.close()
    assert ran == ["before"]


def test_a_closed_loop_refuses_work() -> None:
    async def work() -> None: ...

    loop = LoopThread()
    loop.close()
    with pytest.raises(ClosedError):
        loop.submit(work())


def test_a_close_cancels_what_runs(loop: LoopThread) -> None:
    began = threading.Event()

    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    work = loop.submit(forever())
    assert began.wait(WAIT_S)
    loop.close()
    assert work.cancelled()


def test_a_wakeup_has_its_function_run_again_and_again(loop: LoopThread) -> None:
    came = threading.Semaphore(0)
    wakeup = loop.wakeup(came.release)
    for _ in range(3):
        wakeup.send()
        assert came.acquire(timeout=WAIT_S)


def test_who_rings_keeps_the_interpreter_and_all_rings_so_far_are_one(loop: LoopThread) -> None:
    ran: list[int] = []
    came = threading.Event()

    def run() -> None:
        ran.append(1)
        came.set()

    wakeup = loop.wakeup(run)
    wakeup.send()
    assert came.wait(WAIT_S)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(10.0)
    try:
        for _ in range(1000):
            wakeup.send()
        assert len(ran) == 1, "the loop runs when the caller waits, and not before"
    finally:
        sys.setswitchinterval(interval_s)
    came.clear()
    assert came.wait(WAIT_S)
    assert len(ran) == 2


def test_a_ring_after_the_close_reaches_no_other_file() -> None:
    loop = LoopThread()
    wakeup = loop.wakeup(lambda: None)
    loop.close()
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]
    try:
        assert wakeup.fd in others, "the number is used again"
        wakeup.send()
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in others:
            os.close(other)
