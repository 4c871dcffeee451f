"""The interface for running copy plans on a kind of device, and the jobs that it returns.

`gpu.CpuCopies` and `cuda.CudaCopies` implement it; tests implement it with delays and faults.
"""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from .copyplan import CopyPlan

Mark: TypeAlias = Any
"""The work queued on a stream at one moment; only the `Copies` that made it can read it."""


class Lane(enum.Enum):
    """A queue of copies that complete in order."""

    STORE = "store"
    LOAD = "load"
    EXPEDITED = "expedited"  # loads that the server cannot go on without


class CopyJob(Protocol):
    """A transfer in flight, which its caller keeps until it is done. Any thread may ask."""

    size_bytes: int

    @property
    def error(self) -> str | None:
        """Why the copy failed; None while it runs, and if it succeeded."""
        ...

    @property
    def seconds(self) -> float:
        """How long the copying itself took, once it is done."""
        ...

    def done(self) -> bool:
        """Say whether it has ended, successfully or not."""
        ...

    def wait(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds for its end; return whether it has ended."""
        ...

    async def ended(self) -> None:
        """Return when it has ended. Cancelling the await does not stop the copy."""
        ...


class RefusedJob:
    """A transfer that was never started."""

    seconds = 0.0

    def __init__(self, size_bytes: int, error: str) -> None:
        self.size_bytes = size_bytes
        self.error: str | None = error

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None) -> bool:
        return True

    async def ended(self) -> None:
        """It has."""


class Copies(Protocol):
    """Carries out copy plans on one kind of device.

    Attributes:
        waits_for_pageable: whether `submit` may wait for a copy from or to memory that is not page-locked.
    """

    waits_for_pageable: bool

    def device(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's current one inside the `with` block."""
        ...

    def mark(self) -> Mark:
        """Capture the work queued on the calling thread's stream so far, or the device's fault."""
        ...

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        """Start a copy that runs after `after`: device to host for stores, host to device for loads.

        A device's fault is the job's error. No two threads call at once, and none after `close`.
        """
        ...

    def close(self) -> None:
        """Wait for the copies in flight, then release the device; idempotent."""
        ...
