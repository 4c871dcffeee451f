"""Closes an engine: at the end of a `with` block, when it is collected, or when the interpreter ends."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from .lifetime import Lifetime

logger = logging.getLogger(__name__)

CLOSE_S = 30.0  # what a close gives the chunks that still wait for the last tier


class ClosedByWith(ABC):
    """Closes at the end of a `with` or `async with` block."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    async def aclose(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


_alive: dict[weakref.ref[Lifetime[Any]], None] = {}
"""Those of this process that were not collected yet, oldest first, for the hook of its end."""


def close_if_forgotten(owner: object, lifetime: Lifetime[Any]) -> None:
    """End `lifetime` when `owner` is collected or the interpreter ends, unless it has ended by then.

    `lifetime` must not refer to its owner.
    """
    weakref.finalize(owner, _end_collected, lifetime).atexit = False
    _alive[weakref.ref(lifetime, _alive.pop)] = None
    _hook()


@functools.cache
def _hook() -> None:
    """Have this process end what is alive; once, as such a hook stays for good.

    It runs before the threads of executors end, which the tiers work on; those of `atexit` run after it.
    """
    threading._register_atexit(_end_all)  # type: ignore[attr-defined]


def _end_collected(lifetime: Lifetime[Any]) -> None:
    if lifetime.has_ended() or not lifetime.loop.is_own_process():
        return
    end = threading.Thread(target=lifetime.end, args=(CLOSE_S,), name="kvtier-forgotten", daemon=True)
    # From the loop: this may be in the middle of anything, on any thread, and must neither wait nor lock.
    lifetime.loop.call_soon(end.start)
    warnings.warn("an engine was never closed: call close() or use `with`", ResourceWarning, stacklevel=2)


def _end_all() -> None:
    for reference in reversed(list(_alive)):
        lifetime = reference()
        if lifetime is None or not lifetime.loop.is_own_process() or lifetime.has_ended():
            continue
        logger.warning("an engine was never closed: closing it")
        lifetime.end(CLOSE_S)
