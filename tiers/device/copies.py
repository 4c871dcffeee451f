"""Carrying out copy plans: what the gpu tier asks of a kind of device, and the jobs that it gets.

`gpu.CpuCopies` and `cuda.CudaCopies` fill it; tests fill it with delays and faults.
"""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from .copyplan import CopyPlan

Mark: TypeAlias = Any
"""What a stream had been told to do at one moment; only the `Copies` that made it can read it."""


class Lane(enum.Enum):
    """Copies that complete in order among themselves."""

    STORE = "store"
    LOAD = "load"
    EXPEDITED = "expedited"  # loads that the server cannot go on without


class CopyJob(Protocol):
    """One transfer under way, which its caller keeps until it is done. Any thread may ask."""

    size_bytes: int

    @property
    def error(self) -> str | None:
        """Why the copy failed, once it is done; None when it did not."""
        ...

    @property
    def seconds(self) -> float:
        """How long the copying itself took, once it is done."""
        ...

    def done(self) -> bool:
        """Say whether it has ended, well or not."""
        ...

    def wait(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds for its end; return whether it came."""
        ...

    async def ended(self) -> None:
        """Return when it has ended. A cancelled await leaves the copy going."""
        ...


class RefusedJob:
    """A transfer that never began: nothing of it runs anywhere."""

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
    """Carries out copy plans on one kind of device."""

    def device(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's current one for a while."""
        ...

    def mark(self) -> Mark:
        """Note what the calling thread's stream has been told to do so far, or the fault of the device."""
        ...

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        """Start a copy that runs after `after`: device to host for stores, host to device for loads.

        A device's fault is the job's error. No two threads call at once, and none after `close`.
        """
        ...

    def close(self) -> None:
        """Wait for what is under way, then release the device; idempotent."""
        ...
