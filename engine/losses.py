"""Who stores and who flushes: a flush tells each caller of what was lost since it stored."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any, TypeAlias

Caller: TypeAlias = weakref.ref[Any]
"""An asyncio task, or a thread that runs none. It is equal to itself only, also when that is gone."""


def calling() -> Caller:
    """Who calls this."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs on this thread
        task = None
    caller = weakref.ref(threading.current_thread() if task is None else task)
    hash(caller)  # of the living one, and kept from then on: a reference to one that is gone has none
    return caller
