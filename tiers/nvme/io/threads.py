"""A pool of daemon threads, all of them started before the first call.

Python's own executor starts a thread when a call needs one, so a limit on threads is met in the middle of a
transfer, and it joins its threads when the interpreter ends, so one call that hangs in the kernel keeps the
process from ending. Here a thread that cannot be started fails the open, and nobody waits for one at exit.
"""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

import aiofiles.os

from ...errors import TierUnavailable

T = TypeVar("T")

_Task = tuple["Future[Any]", Callable[[], Any]]


class Threads(Executor):
    """Runs calls in the order in which they are submitted. `submit` from any thread.

    A submitted call cannot be cancelled any more: a future that is not done has a thread, or will get one.
    """

    def __init__(self, count: int, name: str) -> None:
        """Start the threads.

        Raises:
            TierUnavailable: the system starts no more threads; none of these is left.
        """
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        try:
            for number in range(count):
                thread = threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except (RuntimeError, MemoryError) as error:
            self.shutdown()
            raise TierUnavailable("nvme", _no_thread(error)) from error

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._tasks.put((future, lambda: call(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after the calls that are queued; `cancel_futures` is not for these calls."""
        assert not cancel_futures, "a queued call may own a buffer"
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del task, future, call  # an idle thread keeps no buffer alive


class _Remembering(Executor):
    """Hands one call on and remembers its future."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self.future: Future[Any] | None = None

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future = self.future = self._pool.submit(call, *args, **kwargs)
        return future


async def through(pool: Executor, call: Callable[[], T], on_cancel: Callable[[], None] = lambda: None) -> T:
    """Run one call on the pool; returns only once no thread works on it, also when cancelled.

    The task that waits for aiofiles may be cancelled by anybody, a closing loop included. So what is waited
    for is the pool's own future, which nobody can cancel.
    """
    remembering = _Remembering(pool)
    try:
        result: T = await aiofiles.os.wrap(call)(executor=remembering)
        return result
    except asyncio.CancelledError:
        on_cancel()
        raise
    finally:
        if remembering.future is not None:
            await ended(remembering.future)


async def ended(*futures: Future[Any]) -> None:
    """Return once the calls are done; a cancellation meanwhile is raised only then."""
    cancelled = False
    while waiting := [asyncio.wrap_future(future) for future in futures if not future.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def _no_thread(error: BaseException) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return (
        f"the system starts no more threads ({error}): raise pids.max of the container (--pids-limit, "
        f"TasksMax) or RLIMIT_NPROC, which is {limit} (ulimit -u)"
    )
