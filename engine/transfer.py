"""A job: one store or load as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A transfer under way; poll it, wait for it, or await it in any event loop.

    Any thread may use it. Giving up waiting, by a timeout or a cancelled `await`, does not stop the
    transfer; `cancel` does, and even then the blocks and slots it uses are only free once nothing copies
    to or from them any more.
    """

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def done(self) -> bool:
        """Say whether the result is there."""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> T:
        """Return the result, waiting at most `timeout` seconds for it.

        Raises:
            TimeoutError: it is not there yet; the transfer goes on.
            concurrent.futures.CancelledError: the job was cancelled.
        """
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Stop the transfer as soon as nothing is in the middle of a copy."""
        self._future.cancel()

    def settle(self) -> None:
        """Wait until the job has ended, however it ends."""
        wait([self._future])

    def when_done(self, callback: Callable[[Job[T]], None]) -> None:
        """Call `callback` with this job once it is done, on whichever thread ends it; at once if it is."""
        self._future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, T]:
        # Shielded: one waiter that is cancelled must not take the transfer from the others.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()
