"""Threads for calls that may never return."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from kvtier.engine import executor
from kvtier.engine.executor import DaemonExecutor

WAIT_S = 10.0


def test_calls_run_on_daemons_and_an_idle_thread_is_used_again() -> None:
    pool = DaemonExecutor("test-pool")
    names = {pool.submit(threading.current_thread).result(WAIT_S).name for _ in range(20)}
    daemons = {pool.submit(lambda: threading.current_thread().daemon).result(WAIT_S) for _ in range(3)}
    pool.shutdown()
    assert len(names) <= 2, "the one before may not be idle yet"
    assert daemons == {True}


def test_calls_that_hang_hold_no_other_up_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "THREADS_MAX", 3)
    pool, ends, began = DaemonExecutor("test-pool"), threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        began.release()
        assert ends.wait(WAIT_S)

    hung = [pool.submit(hang) for _ in range(2)]
    assert began.acquire(timeout=WAIT_S)
    assert began.acquire(timeout=WAIT_S)
    assert pool.submit(lambda: 5).result(WAIT_S) == 5
    hung += [pool.submit(hang) for _ in range(3)]
    assert began.acquire(timeout=WAIT_S)
    assert not began.acquire(blocking=False)
    pool.shutdown()
    ends.set()
    for future in hung:
        future.result(WAIT_S)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(hang)


def test_what_a_call_raises_is_its_futures() -> None:
    pool = DaemonExecutor("test-pool")
    failed: Future[int] = pool.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(WAIT_S)
    pool.shutdown()


async def test_asyncio_takes_it_for_its_own() -> None:
    loop = asyncio.get_running_loop()
    pool = DaemonExecutor("test-pool")
    loop.set_default_executor(pool)
    assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
    pool.shutdown()


def test_where_no_thread_can_be_had_the_call_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends, from Python 3.12 on."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    pool = DaemonExecutor("test-pool")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pool.submit(threading.get_ident).result(0) == threading.get_ident()
    pool.shutdown()
