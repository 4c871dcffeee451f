"""The event-loop thread: where all asyncio work of an engine runs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..tiers.errors import ClosedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_S = 10.0  # the thread's own end, after its tasks were awaited; only a bug makes it longer


class LoopThread:
    """An asyncio loop in one daemon thread.

    `submit` and `call_soon` may be called from any thread. `close` cancels what still runs, waits for
    it, and joins the thread; it is idempotent.
    """

    def __init__(self, name: str = "kvtier-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
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

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
