"""Who is told of what was lost."""

from __future__ import annotations

import asyncio
import gc
import threading

from kvtier.engine.losses import Caller, calling


def of_a_thread() -> Caller:
    found: list[Caller] = []
    thread = threading.Thread(target=lambda: found.append(calling()))
    thread.start()
    thread.join()
    return found[0]


async def named() -> Caller:
    return calling()


def test_a_thread_is_one_caller_however_often_it_calls() -> None:
    assert calling() == calling()
    assert calling() != of_a_thread()


async def test_each_task_is_a_caller_of_its_own() -> None:
    one, other = await asyncio.gather(named(), named())
    assert len({one, other, calling()}) == 3
    assert calling() == await named(), "what a task awaits is the same task"


def test_a_caller_that_is_gone_is_equal_to_no_other() -> None:
    gone = of_a_thread()
    gc.collect()
    assert gone() is None
    marks = {gone: 1, of_a_thread(): 2}
    gc.collect()
    assert marks[gone] == 1
    assert len(marks) == 2
