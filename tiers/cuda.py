"""Copies on CUDA streams (ROCm's torch fills the same calls), all that is CUDA-specific in kvtier.

Each lane has a stream: loads of high priority, stores of low, so that a busy store never delays a load.
A copy waits for the event that marks the caller's stream, runs, and records an event that is polled.
Nothing here synchronises a stream, and nothing blocks the thread that submits.

A transfer is one call where the driver has `cuMemcpyBatchAsync` (CUDA 12.8), whatever the number of runs.
It is called through ctypes, on the arrays that hold the plan: the bindings of cuda-python take a list of
Python objects, which for 2,048 runs costs more than the call. References are to NVIDIA's CUDA Driver API
manual, release 13.1, and CUDA Runtime API manual.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from .copies import CopyJob, Lane, Mark
from .copyplan import Addresses, CopyPlan

POLL_S = 0.0005  # between two looks at an event, where an event loop waits for it
BATCH_SINCE = 12080  # the CUDA version whose signature of cuMemcpyBatchAsync we call

_SRC_ACCESS_ORDER_STREAM = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM: sources are read in stream order
_PREFER_OVERLAP = 1  # CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE: copy engines rather than SMs

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
    """cuMemcpyBatchAsync as CUDA 12.8 declares it (6.13, Memory Management).

    "The batch as a whole executes in stream order but copies within a batch are not guaranteed to execute
    in any specific order": the runs of a plan never overlap. The stream "must not be legacy NULL stream":
    ours are streams of their own.
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
        try:
            driver = ctypes.CDLL("libcuda.so.1")
            get_address = driver.cuGetProcAddress_v2
        except (OSError, AttributeError):
            return None
        # 6.34, Driver Entry Point Access: the version asked for decides the signature of what is returned.
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
            raise RuntimeError(f"cuMemcpyBatchAsync: CUDA error {result} at run {failed_at.value}")


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
            # HIP Runtime API, Memory Management; kind 4: the pointers tell the direction.
            function = ctypes.CDLL("libamdhip64.so").hipMemcpyAsync
            kind: tuple[int, ...] = (4,)
            function.argtypes = (*_COPY_ARGUMENTS, ctypes.c_int, ctypes.c_void_p)
        else:
            # 6.13, Memory Management: under unified addressing the pointers say where they lead.
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
            return torch.cuda.Event(enable_timing=True)

    def give(self, event: torch.cuda.Event) -> None:
        self._free.append(event)


class CudaJob:
    """A copy on a stream, or one that could not be submitted."""

    def __init__(self, plan: CopyPlan, events: _Events) -> None:
        self.size_bytes = plan.size_bytes
        self.error: str | None = None
        self.seconds = 0.0
        self._plan: CopyPlan | None = plan  # the driver may read the arrays until the copy has ended
        self._events = events
        self._between: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._lock = threading.Lock()

    def begun(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._between = (start, end)

    def failed(self, error: RuntimeError) -> None:
        """It ends here: nothing of it runs on the device."""
        self.error, self._plan = f"{type(error).__name__}: {error}", None

    def done(self) -> bool:
        with self._lock:
            if self._plan is None:
                return True
            assert self._between is not None, "a job is handed out once it has begun or failed"
            start, end = self._between
            try:
                if not end.query():
                    return False
                self.seconds = start.elapsed_time(end) / 1000  # in ms there
            except RuntimeError as error:  # a sticky error of the device: every later call reports it too
                self.error = f"{type(error).__name__}: {error}"
            else:
                self._events.give(start)
                self._events.give(end)
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
    though the driver may stage them and block the submitting thread.
    """

    def __init__(self, device: torch.device, batch: _Batch | None = None) -> None:
        self._device = device
        self._batch = batch or BatchedMemcpy.find() or MemcpyPerRun.find()
        self._events = _Events()
        # torch.cuda.Stream: "priority ... can be either -1 (high priority) or 0 (low priority)".
        self._streams = {
            lane: torch.cuda.Stream(device, priority=0 if lane is Lane.STORE else -1) for lane in Lane
        }
        self._lock = threading.Lock()  # one submit at a time, so that jobs of a lane keep their order
        self._closed = False

    def device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device)

    def mark(self) -> Mark:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        job = CudaJob(plan, self._events)
        stream = self._streams[lane]
        targets, sources = (plan.host, plan.device) if lane is Lane.STORE else (plan.device, plan.host)
        start, end = self._events.take(), self._events.take()
        try:
            with self._lock, self.device():
                stream.wait_event(after)
                start.record(stream)
                try:
                    self._batch(targets, sources, plan.sizes, stream.cuda_stream)
                finally:
                    end.record(stream)  # also after a failure half way: what did start must end first
        except RuntimeError as error:
            job.failed(error)
        else:
            job.begun(start, end)
        return job

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for stream in self._streams.values():
                stream.synchronize()
