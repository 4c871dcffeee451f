"""A job: work in flight, as its caller sees it: a store, a load, a flush or a removal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import wait
from functools import partial
from typing import Any, Generic, TypeVar

from ..tiers.errors import ClosedError
from .loop import LoopThread

T = TypeVar("T")


class Job(Generic[T]):
    """A transfer in flight: poll it, wait for it, or await it in any event loop.

    Any thread may use it. The engine's own thread, which runs the callbacks of `when_done`, may not wait for
    a job that is not done. In a process forked from the engine's, every call raises RuntimeError.

    A timeout or a cancelled `await` ends the waiting, not the transfer; `cancel` stops the transfer. A job is
    done only once nothing copies to or from its blocks and slots any more, whichever way it ended.
    """

    def __init__(self, work: Coroutine[Any, Any, T], loop: LoopThread) -> None:
        self._loop = loop
        # On the loop thread only:
        self._task: asyncio.Task[Any] | None = None
        self._end: BaseException | None = None  # what the job is ended with before its work is done
        self._future = loop.submit(self._run(work))

    def done(self) -> bool:
        """Say whether the result is there."""
        self._loop.check_process()
        return self._future.done()

    def wait(self, timeout: float | None = None) -> T:
        """Return the result, waiting at most `timeout` seconds for it.

        Raises:
            TimeoutError: it is not there yet; the transfer goes on.
            concurrent.futures.CancelledError: the job was cancelled.
            ClosedError: the engine was closed first.
            RuntimeError: the engine's own thread would wait for itself.
        """
        self._check_may_wait()
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Stop the transfer as soon as nothing is in the middle of a copy."""
        self._loop.check_process()
        self._loop.call_soon(partial(self._end_with, asyncio.CancelledError()))

    def close(self) -> None:
        """Stop like `cancel` because the engine closes, which is what those who wait are told."""
        self._loop.call_soon(partial(self._end_with, ClosedError("the engine was closed first")))

    def wait_ended(self) -> None:
        """Wait until the job has ended, whether it succeeded, failed or was cancelled.

        Raises:
            RuntimeError: the engine's own thread would wait for itself.
        """
        self._check_may_wait()
        wait([self._future])

    def when_done(self, callback: Callable[[Job[T]], None]) -> None:
        """Call `callback` with this job once it is done, on the engine's own thread.

        If it is done already, the callback runs at once on the thread that calls this.
        """
        self._loop.check_process()
        self._future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, T]:
        self._loop.check_process()
        # Shielded: one waiter that is cancelled must not take the transfer from the others.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    async def ended(self) -> None:
        """Return once the job has ended, however; on the loop thread."""
        future = asyncio.wrap_future(self._future)
        future.add_done_callback(_seen)  # also where this is cancelled before
        await asyncio.wait([future])  # which leaves the job alone when this is cancelled

    def _check_may_wait(self) -> None:
        if not self.done():
            self._loop.check_may_wait()

    # --- on the loop thread -------------------------------------------------------------------------

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        if self._end is not None:
            work.close()
            raise self._end
        try:
            return await work
        except asyncio.CancelledError:
            if self._end is None:  # by whoever stops the loop
                raise
            raise self._end from None

    def _end_with(self, end: BaseException) -> None:
        if self._end is not None:
            return
        self._end = end
        if self._task is not None:
            self._task.cancel()


def _seen(future: asyncio.Future[Any]) -> None:
    """Keep the loop from logging an error: who waits for the job gets it."""
    if not future.cancelled():
        future.exception()
