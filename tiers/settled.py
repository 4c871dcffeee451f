"""Waiting for work that uses a caller's buffers: not even a cancellation returns before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def settled(work: Awaitable[T], on_cancel: Callable[[], None] = lambda: None) -> T:
    """Await `work`; when cancelled, await it all the same and only then pass the cancellation on."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        on_cancel()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:  # cancelled again; the buffers are still in use
                continue
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what the caller gets
        raise
