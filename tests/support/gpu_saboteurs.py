"""Copies and a tier that each break one rule of order, to show that the race detector notices."""

from __future__ import annotations

from collections.abc import Sequence

from ordering_rig import SteppedCudaCopies
from race_detector import Access, RaceDetector, SteppedCopies

from kvtier.tiers.device.copies import Copies, CopyJob, Lane, Mark
from kvtier.tiers.device.copyplan import Addresses, CopyPlan, KVLayout, Spans
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.device.tensors import Tensor


class EarlyJob:
    """A job that says it is done as soon as it is asked."""

    seconds = 0.0

    def __init__(self, size_bytes: int, error: str | None = None) -> None:
        self.size_bytes = size_bytes
        self.error = error

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None) -> bool:
        return True

    async def ended(self) -> None:
        pass


class Heedless(SteppedCopies):
    """Copies begin at once, whatever kernels came before."""

    def may_begin(self, access: Access) -> bool:
        return True


class Hasty(SteppedCopies):
    """Jobs are done before they are."""

    def started(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        super().started(plan, lane, after)
        return EarlyJob(plan.size_bytes)


class LateJob:
    """A job that another one stands for, once that is submitted."""

    error: str | None = None
    seconds = 0.0

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.job: CopyJob | None = None

    def done(self) -> bool:
        return self.job is not None and self.job.done()

    def wait(self, timeout: float | None) -> bool:
        assert self.job is not None
        return self.job.wait(timeout)

    async def ended(self) -> None:
        assert self.job is not None
        await self.job.ended()


class Disorderly(SteppedCopies):
    """The second job of a lane overtakes the first."""

    def __init__(self, detector: RaceDetector) -> None:
        super().__init__(detector)
        self._kept: tuple[CopyPlan, Lane, Mark, LateJob] | None = None

    def started(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        if self._kept is None:
            late = LateJob(plan.size_bytes)
            self._kept = plan, lane, after, late
            return late
        job = super().started(plan, lane, after)
        first_plan, first_lane, first_after, late = self._kept
        late.job = super().started(first_plan, first_lane, first_after)
        self._kept = None
        return job

    def _settle(self) -> None:
        if self._kept is None:
            super()._settle()


class Deaf(SteppedCudaCopies):
    """The streams of copies do not wait for the compute stream."""

    def __init__(self, detector: RaceDetector) -> None:
        super().__init__(detector)
        for stream in self.cuda.streams:
            stream.wait_event = ignore  # type: ignore[method-assign]


def ignore(event: object) -> None:
    pass


class Forgetful(SteppedCudaCopies):
    """A failed job is done at once, though some of its runs are on their way."""

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        job = super().submit(plan, lane, after)
        return job if job.error is None else EarlyJob(plan.size_bytes, job.error)


class Stale(GpuTier):
    """Transfers come after what the stream had been told to do when the tier was made."""

    def __init__(self, layout: KVLayout, copies: Copies, tensors: Sequence[Tensor] = ()) -> None:
        super().__init__(layout, copies, tensors)
        self._first = copies.mark()

    def _submit(self, spans: Spans, host_addresses: Addresses, lane: Lane, after: Mark) -> CopyJob:
        return super()._submit(spans, host_addresses, lane, self._first)
