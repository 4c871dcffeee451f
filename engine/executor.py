"""The pool behind `asyncio.to_thread` on an engine's loop, whose threads nobody waits for at exit.

Python joins the threads of its own executors when the interpreter ends. So one call that never returns, into
a drive or a client of another package's tier, would keep the process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

THREADS_MAX = 32  # each call may hang in one; Python's own executor has no more either


class DaemonExecutor(ThreadPoolExecutor):
    """Runs calls in the order in which they are submitted, on the caller's thread where no other can be had.

    `submit` from any thread. A ThreadPoolExecutor by name only, as asyncio wants it: the threads are its own.
    """

    def __init__(self, name: str) -> None:
        super().__init__(THREADS_MAX, name)
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        # Under the lock:
        self._is_closed = False
        self._started_count = 0
        self._idle = threading.Semaphore(0)  # threads that wait for a call

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call.

        Raises:
            RuntimeError: the executor was shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            # Queued first: a new thread that found nothing would count as idle, and then take this call.
            self._calls.put(partial(_run, future, partial(call, *args, **kwargs)))
            is_taken = self._idle.acquire(blocking=False) or self._started_count >= THREADS_MAX
            is_taken = is_taken or self._start() or self._started_count > 0
        if not is_taken and (queued := self._calls.get_nowait()) is not None:
            queued()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once the calls that are queued have ended; never waits for one."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for _ in range(self._started_count):
                    self._calls.put(None)

    def _start(self) -> bool:
        """Start a thread. From Python 3.12 on, none starts once the interpreter ends."""
        name = f"{self._name}_{self._started_count}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            return False
        self._started_count += 1
        return True

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call()
            del call  # an idle thread keeps no buffer alive

    def _next(self) -> Callable[[], None] | None:
        """The next call. Only a thread that has to wait for one is idle."""
        try:
            return self._calls.get_nowait()
        except Empty:
            self._idle.release()
            return self._calls.get()


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
