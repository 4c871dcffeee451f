"""A flush under way, as its caller sees it: a loss is told once it has reached him, and not before."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from ...tiers.errors import NotDurable
from ..job import Job


class FlushJob(Job[None]):
    """A flush. Whoever waits for it in vain, be it for a time-out, hears of its losses from the next one."""

    def wait(self, timeout: float | None = None) -> None:
        with _reaching():
            super().wait(timeout)

    def __await__(self) -> Generator[Any, None, None]:
        with _reaching():
            yield from super().__await__()


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except NotDurable as error:
        error.told()
        raise
