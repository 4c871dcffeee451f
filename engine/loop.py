"""The event-loop thread: where all asyncio work of an engine runs."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from ..tiers.errors import ClosedError
from .executor import DaemonExecutor

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_S = 2.0  # the thread's end takes milliseconds; longer where a task waits for a call that hangs

_libc = ctypes.PyDLL(None)  # calls through it keep the interpreter's lock
_libc.eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)


class Wakeup:
    """Runs one function on a loop; signals that come before it starts are merged into one run.

    For a thread that must not be delayed. `call_soon` writes to a socket and releases the interpreter lock
    for that: the loop's thread takes it, then the threads that it wakes, and the caller comes last. `send`
    keeps the lock, and the others start when the caller waits for something, or after a switch interval.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False

    def send(self) -> None:
        """Signal the loop, from any thread; does nothing once the loop is closed."""
        with self._lock:  # else a late signal could reach another file that reuses the descriptor
            if not self._closed:
                _libc.eventfd_write(self.fd, 1)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)


class LoopThread:
    """An asyncio loop in one daemon thread, in one process.

    `submit` and `call_soon` may be called from any thread. `close` cancels what still runs, waits for
    it, and joins the thread; it is idempotent. A thread whose tasks do not end is left behind, which keeps no
    process from ending.
    """

    def __init__(self, name: str = "kvtier-loop") -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonExecutor(f"{name}-calls"))
        self._closed = False
        self._wakeups: list[Wakeup] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop.

        Raises:
            ClosedError: the loop was closed; the coroutine did not start.
        """
        if self._closed:
            coroutine.close()
            raise ClosedError("the engine is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run a function on the loop, in the order of the calls; after `close` nothing happens."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self._closed:
                raise

    def wakeup(self, function: Callable[[], None]) -> Wakeup:
        """Return a cheap way to run this function on the loop, again and again."""
        wakeup = Wakeup()
        self._wakeups.append(wakeup)
        self.call_soon(partial(self._loop.add_reader, wakeup.fd, partial(_woken, wakeup.fd, function)))
        return wakeup

    def is_current(self) -> bool:
        """Say whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def is_own_process(self) -> bool:
        """Say whether this is the process that made the loop, not one forked from it."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Refuse a forked process, which has copies of the engine's locks but none of its threads.

        Raises:
            RuntimeError: this process was forked from the engine's.
        """
        if not self.is_own_process():
            raise RuntimeError(
                f"this engine belongs to process {self._pid}, from which this one was forked; open one here"
            )

    def check_may_wait(self) -> None:
        """Refuse a caller that would wait for the loop forever.

        Raises:
            RuntimeError: this is the loop's own thread, or a forked process.
        """
        self.check_process()
        if self.is_current():
            raise RuntimeError(
                "this is the engine's own thread, which would wait for itself: call it on another thread"
            )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            logger.error("the event-loop thread did not end within %.0f s; it is left behind", JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._cancel_all()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            for wakeup in self._wakeups:
                wakeup.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _woken(fd: int, function: Callable[[], None]) -> None:
    os.eventfd_read(fd)
    function()
