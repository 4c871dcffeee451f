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


async def happened(event: asyncio.Event) -> None:
    """Wait for an event; when cancelled, wait for it all the same and only then pass the cancellation on.

    No task of its own waits: a loop that ends would cancel that one, too.
    """
    cancelled = False
    while not event.is_set():
        try:
            await event.wait()
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def ended(task: asyncio.Task[None]) -> None:
    """Wait for the end of a task; one that a loop has cancelled, because it ends itself, has ended well."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
