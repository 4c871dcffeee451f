"""Copies on CUDA streams, also for ROCm: everything in kvtier that is specific to CUDA.

ROCm's torch offers the same calls. Each lane has its own stream, so no copy queues behind one of another
lane. A copy waits for the event that marks the caller's stream, runs, and records an event that is polled.
Only `close` waits for a stream, and with page-locked memory nothing blocks the thread that submits.

A transfer is one call where the driver has `cuMemcpyBatchAsync` (CUDA 12.8), whatever the number of runs.
It is called through ctypes, on the arrays that hold the plan: the bindings of cuda-python take a list of
Python objects, which for 2,048 runs costs more than the call.

Comments name the section of NVIDIA's CUDA Driver API manual and the function in it. torch makes the calls on
streams and events, and says `cudaX` of the Runtime API where the manual says `cuX`; the two agree.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import torch

from .copies import CopyJob, Lane, Mark
from .copyplan import Addresses, CopyPlan

POLL_S = 0.0005  # between two polls of an event
BATCH_SINCE = 12080  # the CUDA version whose signature of cuMemcpyBatchAsync we call: 13.0 has no failIdx

# CU_MEMCPY_SRC_ACCESS_ORDER_STREAM: sources are read in stream order, as destinations are written anyway.
_SRC_ACCESS_ORDER_STREAM = 1
# CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE: a hint to use what kernels do not.
_PREFER_OVERLAP = 1

_COPY_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)  # target, source, bytes

_Batch = Callable[[Addresses, Addresses, Addresses, int], None]  # targets, sources, sizes, stream


class _Location(ctypes.Structure):  # CUmemLocation; "ignored when the pointers are not managed memory"
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):  # CUmemcpyAttributes
    _fields_ = (
        ("src_access_order", ctypes.c_int),
        ("src_location_hint", _Location),
        ("dst_location_hint", _Location),
        ("flags", ctypes.c_uint),
    )


class BatchedMemcpy:
    """cuMemcpyBatchAsync as CUDA 12.8 declares it (Memory Management).

    "The batch as a whole executes in stream order but copies within a batch are not guaranteed to execute
    in any specific order": the runs of a plan never overlap. The stream "must not be legacy NULL stream":
    ours are streams of their own. One set of attributes is for all runs: "the first entry in attrsIdxs must
    always be 0", and there may be no more sets than runs, so a batch has at least one run.
    """

    PROTOTYPE = ctypes.CFUNCTYPE(
        ctypes.c_int,  # CUresult
        ctypes.c_void_p,  # dsts
        ctypes.c_void_p,  # srcs
        ctypes.c_void_p,  # sizes
        ctypes.c_size_t,  # count
        ctypes.c_void_p,  # attrs
        ctypes.c_void_p,  # attrsIdxs: the first copy each of them applies to
        ctypes.c_size_t,  # numAttrs
        ctypes.c_void_p,  # failIdx
        ctypes.c_void_p,  # hStream
    )

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function
        self._attributes = _Attributes(_SRC_ACCESS_ORDER_STREAM, _Location(), _Location(), _PREFER_OVERLAP)
        self._first = ctypes.c_size_t(0)

    @staticmethod
    def find() -> BatchedMemcpy | None:
        """The driver's function, or None where it has none (an older driver, ROCm)."""
        if torch.version.hip:
            return None
        try:
            driver = ctypes.CDLL("libcuda.so.1")
            get_address = driver.cuGetProcAddress_v2
        except (OSError, AttributeError):
            return None
        # Driver Entry Point Access, cuGetProcAddress: the version that is asked for decides on the signature;
        # CUDA_ERROR_INVALID_VALUE where the driver is older, success and NULL where it has no such function.
        found, status = ctypes.c_void_p(), ctypes.c_int()
        result = get_address(
            b"cuMemcpyBatchAsync",
            ctypes.byref(found),
            BATCH_SINCE,
            ctypes.c_uint64(0),
            ctypes.byref(status),
        )
        return BatchedMemcpy(BatchedMemcpy.PROTOTYPE(found.value)) if result == 0 and found.value else None

    def __call__(self, targets: Addresses, sources: Addresses, sizes: Addresses, stream: int) -> None:
        failed_at = ctypes.c_size_t(0)
        # Memory Management, cuMemcpyBatchAsync.
        result = self._function(
            targets.ctypes.data,
            sources.ctypes.data,
            sizes.ctypes.data,
            len(sizes),
            ctypes.addressof(self._attributes),
            ctypes.addressof(self._first),
            1,
            ctypes.addressof(failed_at),
            stream,
        )
        if result:
            run = failed_at.value  # SIZE_MAX if the error is not that of one run
            where = f"at run {run}" if run < len(sizes) else "of the whole batch"
            raise RuntimeError(f"cuMemcpyBatchAsync: CUDA error {result} {where}")


class MemcpyPerRun:
    """One asynchronous memcpy a run, for drivers without the batched call."""

    def __init__(self, function: Callable[..., int], *trailing: int) -> None:
        self._function = function
        self._trailing = trailing  # arguments between the size and the stream

    @staticmethod
    def find() -> MemcpyPerRun:
        """ROCm's function or CUDA's.

        Raises:
            OSError: the process has a device that belongs to neither.
        """
        if torch.version.hip:
            # HIP Runtime API, Memory Management, hipMemcpyAsync; kind 4, hipMemcpyDefault: the pointers tell
            # the direction.
            function = ctypes.CDLL("libamdhip64.so").hipMemcpyAsync
            kind: tuple[int, ...] = (4,)
            function.argtypes = (*_COPY_ARGUMENTS, ctypes.c_int, ctypes.c_void_p)
        else:
            # Memory Management, cuMemcpyAsync: "infers the type of the transfer from the pointer values".
            function = ctypes.CDLL("libcuda.so.1").cuMemcpyAsync
            kind = ()
            function.argtypes = (*_COPY_ARGUMENTS, ctypes.c_void_p)
        return MemcpyPerRun(function, *kind)

    def __call__(self, targets: Addresses, sources: Addresses, sizes: Addresses, stream: int) -> None:
        runs = zip(targets.tolist(), sources.tolist(), sizes.tolist(), strict=True)
        for run, (target, source, size) in enumerate(runs):
            result = self._function(target, source, size, *self._trailing, stream)
            if result:
                raise RuntimeError(f"the driver's memcpy: error {result} at run {run}")


class _Events:
    """Timing events for reuse: making one costs more than recording it."""

    def __init__(self) -> None:
        self._free: deque[torch.cuda.Event] = deque()  # thread-safe at both ends

    def take(self) -> torch.cuda.Event:
        try:
            return self._free.pop()
        except IndexError:
            # Event Management, cuEventCreate, which torch leaves to the first record. It is only ever polled.
            return torch.cuda.Event(enable_timing=True)

    def give(self, *events: torch.cuda.Event) -> None:
        """Take back events whose work has completed: to record them again is to forget what they were."""
        self._free.extend(events)


class CudaJob:
    """A copy on a stream. It is done when none of it runs there any more, also if it failed half way."""

    def __init__(
        self,
        plan: CopyPlan,
        between: tuple[torch.cuda.Event, torch.cuda.Event],
        last: torch.cuda.Event | torch.cuda.Stream,
        events: _Events,
        error: str | None,
    ) -> None:
        self.size_bytes = plan.size_bytes
        self.error = error
        self.seconds = 0.0
        self._plan: CopyPlan | None = plan  # kept alive: nothing says when the driver has read its arrays
        self._between = between
        self._last = last  # complete once all that was submitted of the copy is
        self._events = events
        self._lock = threading.Lock()

    def done(self) -> bool:
        with self._lock:
            if self._plan is None:
                return True
            start, end = self._between
            try:
                # Event Management, cuEventQuery: false for CUDA_ERROR_NOT_READY. "For the purposes of Unified
                # Memory, a return value of CUDA_SUCCESS is equivalent to having called cuEventSynchronize()".
                # Stream Management, cuStreamQuery, says the same of a stream.
                if not self._last.query():
                    return False
                if self.error is None:
                    # Event Management, cuEventElapsedTime: "in milliseconds with a resolution of around 0.5
                    # microseconds".
                    self.seconds = start.elapsed_time(end) / 1000
                    self._events.give(start, end)
            except RuntimeError as error:  # a sticky error of the device: every later call reports it too
                self.error = self.error or _reason(error)
            self._plan = None
            return True

    def wait(self, timeout: float | None) -> bool:
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return False
            time.sleep(POLL_S)
        return True

    async def ended(self) -> None:
        while not self.done():  # noqa: ASYNC110 - the event is the device's: it can only be asked
            await asyncio.sleep(POLL_S)


class CudaCopies:
    """Copies between one CUDA device and host memory.

    Page-locked host memory makes them asynchronous and fast; from pageable memory they are right as well,
    though the driver may stage them and block the submitting thread ("API synchronization behavior").
    """

    waits_for_pageable = True

    def __init__(self, device: torch.device, batch: _Batch | None = None) -> None:
        self._device = device
        self._batch = batch or BatchedMemcpy.find() or MemcpyPerRun.find()
        self._events = _Events()
        # Stream Management, cuStreamCreateWithPriority: "lower numbers represent higher priorities". It is a
        # hint for copies that run as kernels; "in the current implementation" priorities have no effect on
        # copies between host and device otherwise.
        self._streams = {
            lane: torch.cuda.Stream(device, priority=0 if lane is Lane.STORE else -1) for lane in Lane
        }
        self._closed = False

    def device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device)

    def mark(self) -> Mark:
        """An event, or the error that kept it from being recorded, reported by the job that waits for it."""
        try:
            event = torch.cuda.Event()
            # Event Management, cuEventRecord: "captures in hEvent the contents of hStream at the time of this
            # call"; event and stream must be of one context, so of one device.
            event.record(torch.cuda.current_stream(self._device))
        except RuntimeError as error:
            return error
        return event

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        stream = self._streams[lane]
        targets, sources = (plan.host, plan.device) if lane is Lane.STORE else (plan.device, plan.host)
        start, end = self._events.take(), self._events.take()
        last: torch.cuda.Event | torch.cuda.Stream = stream
        fault: str | None = None
        try:
            if isinstance(after, RuntimeError):
                raise after
            with self.device():
                # Stream Management, cuStreamWaitEvent: "makes all future work submitted to hStream wait for
                # all work captured in hEvent", as it was captured last before this call.
                stream.wait_event(after)
                # Event Management, cuEventRecord. An event recorded again "will overwrite the previously
                # captured state": the pool has none that is still asked about.
                start.record(stream)
                try:
                    if plan.size_bytes:
                        self._batch(targets, sources, plan.sizes, stream.cuda_stream)
                finally:
                    end.record(stream)  # also after a failure: what did start of the copy must end first
                    last = end
        except RuntimeError as error:
            fault = _reason(error)
        return CudaJob(plan, (start, end), last, self._events, fault)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for stream in self._streams.values():
                with suppress(RuntimeError):  # a lost device runs nothing; its jobs report that
                    # Stream Management, cuStreamSynchronize: "waits until the device has completed all
                    # operations in the stream".
                    stream.synchronize()


def _reason(error: RuntimeError) -> str:
    return f"{type(error).__name__}: {error}"
