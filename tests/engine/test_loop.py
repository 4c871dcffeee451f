"""The loop's thread: what is handed to it, from where, and when it runs."""

from __future__ import annotations

import asyncio
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
