"""The event-loop thread: where all asyncio work of an engine runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ..tiers.errors import ClosedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_S = 10.0  # the thread's own end, after its tasks were awaited; only a bug makes it longer


class LoopThread:
    """An asyncio loop in one daemon thread.

    `submit` and `call_soon` may be called from any thread. `close` cancels what still runs, waits for
    it, and joins the thread; it is idempotent.

    A server's scheduler asks for all chunks of a request one after the other, amid its step. Were the loop
    woken at the first one, it would fetch that one alone, and take the interpreter from the scheduler while
    it does. So with `linger_s` a second thread, the ringer, lets that time pass before it wakes the loop, and
    `call_soon` itself is no more than an entry in a queue.

    Args:
        name: of the thread.
        linger_s: how long a function of `call_soon` waits, unless the loop itself has asked for it.
    """

    def __init__(self, name: str = "kvtier-loop", *, linger_s: float = 0.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._linger_s = linger_s
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None ends the ringer
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._ringer = threading.Thread(target=self._ring, name=f"{name}-ringer", daemon=True)
        if linger_s:
            self._ringer.start()

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
        if self._linger_s and not self.is_current():
            self._calls.put(function)
            return
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self._closed:
                raise

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._linger_s:
            self._calls.put(None)
            self._ringer.join()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            logger.error("the event-loop thread did not end within %.0f s; it is left behind", JOIN_S)

    def _ring(self) -> None:
        while (function := self._calls.get()) is not None:
            time.sleep(self._linger_s)
            self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._cancel_all()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
