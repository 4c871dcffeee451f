"""Awaiting what may hang, and leaving it behind when it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from ..tiers.errors import TierError

logger = logging.getLogger(__name__)


async def returned(work: Coroutine[Any, Any, None], limit_s: float) -> None:
    """Await `work`, at most for `limit_s`; what hangs is cancelled and left behind.

    Raises:
        TimeoutError: it has not ended in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=limit_s)
    finally:
        task.cancel()  # no-op where it has ended
    if not task.done():
        raise TimeoutError(f"no answer within {limit_s:g} s")
    task.result()


async def ended(what: str, work: Coroutine[Any, Any, None], limit_s: float | None) -> bool:
    """Await `work`, at most for `limit_s` if there is one; returns whether it ended.

    What fails or hangs is logged.
    """
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=limit_s)  # a timeout that cancels would wait for what hangs
    if not task.done():
        task.cancel()
        logger.error("close: %s did not end within %.1f s; it is left behind", what, limit_s)
        return False
    error = None if task.cancelled() else task.exception()
    if isinstance(error, TierError):
        logger.error("close: %s failed: %s", what, error)
    elif error is not None:
        logger.error("close: %s failed", what, exc_info=error)
    return True
