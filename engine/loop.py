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

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_S = 10.0  # the thread's own end, after its tasks were awaited; only a bug makes it longer

_libc = ctypes.PyDLL(None)  # calls through it keep the interpreter's lock
_libc.eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)


class Doorbell:
    """Has one function run on a loop, once for all rings before it begins.

    For a thread that may not be held up. `call_soon` writes to a socket, and the interpreter's lock is given
    away for that: the loop's thread takes it, then the threads that it wakes, and the caller comes last. Here
    the caller keeps it, and the others begin when it waits for something, or after a switch interval.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """Any thread; once the loop is closed nothing happens."""
        with self._lock:  # or a late ring could reach a file that has the number by then
            if not self._closed:
                _libc.eventfd_write(self.fd, 1)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)


class LoopThread:
    """An asyncio loop in one daemon thread.

    `submit` and `call_soon` may be called from any thread. `close` cancels what still runs, waits for
    it, and joins the thread; it is idempotent.
    """

    def __init__(self, name: str = "kvtier-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._bells: list[Doorbell] = []
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

    def doorbell(self, function: Callable[[], None]) -> Doorbell:
        """A cheap way to have this function run on the loop, again and again."""
        bell = Doorbell()
        self._bells.append(bell)
        self.call_soon(partial(self._loop.add_reader, bell.fd, partial(_answer, bell.fd, function)))
        return bell

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

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
            for bell in self._bells:
                bell.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _answer(fd: int, function: Callable[[], None]) -> None:
    os.eventfd_read(fd)
    function()
