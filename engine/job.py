"""A job: one store or load as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import wait
from typing import Any, Generic, TypeVar

from .home import Home

T = TypeVar("T")


class Job(Generic[T]):
    """A transfer under way; poll it, wait for it, or await it in any event loop.

    Any thread may use it; the engine's own, which runs the callbacks of `when_done`, may not wait for a job
    that is not done. In a process that was forked from the engine's every call raises RuntimeError.

    Giving up waiting, by a timeout or a cancelled `await`, does not stop the transfer; `cancel` does. However
    it ends, a job is only done once nothing copies to or from its blocks and slots any more.
    """

    def __init__(self, work: Coroutine[Any, Any, T], home: Home) -> None:
        self._home = home
        # On the loop thread only:
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._future = home.loop.submit(self._run(work))

    def done(self) -> bool:
        """Say whether the result is there."""
        self._home.check_process()
        return self._future.done()

    def wait(self, timeout: float | None = None) -> T:
        """Return the result, waiting at most `timeout` seconds for it.

        Raises:
            TimeoutError: it is not there yet; the transfer goes on.
            concurrent.futures.CancelledError: the job was cancelled.
            RuntimeError: the engine's own thread would wait for itself.
        """
        self._check_may_wait()
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Stop the transfer as soon as nothing is in the middle of a copy."""
        self._home.check_process()
        self._home.loop.call_soon(self._cancel)

    def settle(self) -> None:
        """Wait until the job has ended, however it ends.

        Raises:
            RuntimeError: the engine's own thread would wait for itself.
        """
        self._check_may_wait()
        wait([self._future])

    def when_done(self, callback: Callable[[Job[T]], None]) -> None:
        """Call `callback` with this job once it is done, on the engine's own thread; at once if it is."""
        self._home.check_process()
        self._future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, T]:
        self._home.check_process()
        # Shielded: one waiter that is cancelled must not take the transfer from the others.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    def _check_may_wait(self) -> None:
        if not self.done():
            self._home.check_may_wait()

    # --- on the loop thread -------------------------------------------------------------------------

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        if self._cancelled:
            work.close()
            raise asyncio.CancelledError
        return await work

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()
