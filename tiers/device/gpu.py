"""The gpu tier: the server's own KV tensors, and copies between them and slots.

The tensors may be on a CUDA device or in plain memory; `Copies` hides the difference. The rules of order, in
either case:

1. A store sees every write that was queued on the caller's stream when the store was submitted or its
   `DeviceBlocks` made (on the CPU: every write that had happened). The caller holds back later writes to its
   blocks until the job is done.
2. A load writes its blocks after everything that was queued on the caller's stream by then, so no earlier
   kernel reads or writes them afterwards. The caller launches kernels that use the blocks when the job is
   done.
3. A job may touch its slots and blocks until `done()`, also if it failed half way or nobody awaits it any
   more, and never after. The owner of a slot holds it until then, so no slot is reused too early.
4. Jobs of one lane complete in the order of submission, whether they succeed or not. Stores, loads and
   expedited loads are separate lanes: none waits behind another. If two jobs of different lanes share blocks
   or slots, the caller submits the second when the first is done.
5. A device's fault is the job's `error`, never an exception in the server's step.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from ..base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from ..pinned.arena import Arena
from ..settled import settled
from .copies import Copies, CopyJob, Lane, Mark, RefusedJob
from .copyplan import Addresses, CopyPlan, KVLayout, Page, Rows, Spans
from .tensors import BlockIds, Tensor, check_blocks_per_chunk, check_tensors, whole_numbers

HOLD_GIL_BYTES = 128 * 1024
"""Shorter runs are copied with the GIL held: taking it back can cost 5 ms, the copy costs 20 µs."""

_memmove = ctypes.memmove  # releases the GIL
_memmove_address = ctypes.cast(ctypes.memmove, ctypes.c_void_p).value
assert _memmove_address is not None, "libc has memmove"
_short_memmove = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    _memmove_address
)


class GpuTier:
    """The server's KV tensors on one device.

    Threads: `submit_store`, `submit_load` and `blocks` may be called from any thread, and run after
    everything queued on that thread's current stream.
    """

    def __init__(self, layout: KVLayout, copies: Copies, tensors: Sequence[Tensor] = ()) -> None:
        self.name = "gpu"
        self._layout = layout
        self._copies = copies
        self._tensors = tuple(tensors)  # keeps the memory alive that the layout has addresses of
        self._arena: Arena | None = None  # whose pages are being made ready
        self._lock = threading.Lock()  # one submit at a time, and none once `_closed` is set
        self._closed = False

    @classmethod
    def of_tensors(
        cls,
        tensors: Sequence[Tensor],
        *,
        blocks_per_chunk: int = 1,
        groups: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> GpuTier:
        """Use the server's tensors in place.

        Args:
            tensors: each (num_blocks, ...), all on one device; a block is one row, contiguous in itself,
                and rows may be padded.
            blocks_per_chunk: blocks that go under one key.
            groups: for each KV-cache group the tensors it uses, as (index, bytes of a row that are its own);
                by default one group that uses all rows whole.

        Raises:
            ValueError: the tensors cannot be used; the message says which and why.
        """
        check_tensors(tensors)
        check_blocks_per_chunk(blocks_per_chunk)
        if groups is None:
            groups = [[(index, tensor[0].nbytes) for index, tensor in enumerate(tensors)]]
        rows = [_rows(tensor) for tensor in tensors]
        pages = [[_page(rows, index, page_bytes) for index, page_bytes in group] for group in groups]
        return cls(KVLayout(rows, pages, blocks_per_chunk), _copies_for(tensors[0].device), tensors)

    @property
    def part_bytes(self) -> int:
        """This device's bytes of one chunk."""
        return self._layout.part_bytes

    def submit_store(self, spans: Spans, host_addresses: Addresses, after: Mark = None) -> CopyJob:
        """Copy device blocks to the chunks that begin at `host_addresses`; returns at once.

        The job runs after `after`, by default after everything queued on the calling thread's stream.
        A closed tier's jobs have failed.

        Raises:
            ValueError: a block is not on the device, or the chunks do not match the blocks.
        """
        return self._submit(spans, host_addresses, Lane.STORE, after)

    def submit_load(
        self, spans: Spans, host_addresses: Addresses, after: Mark = None, *, expedited: bool = False
    ) -> CopyJob:
        """Copy chunks to device blocks; otherwise like `submit_store`."""
        return self._submit(spans, host_addresses, Lane.EXPEDITED if expedited else Lane.LOAD, after)

    def blocks(
        self, keys: Sequence[ChunkKey], block_ids: BlockIds, *, distinct: bool = False
    ) -> DeviceBlocks:
        """View device blocks as a tier, `blocks_per_chunk` a key. Call it on the thread that wrote them.

        Args:
            distinct: refuse a block that is listed twice, since it cannot take two chunks.

        Raises:
            ValueError: block ids are not whole numbers, not on the device, listed twice, or do not match the
                keys.
        """
        per_chunk = self._layout.blocks_per_chunk
        ids = whole_numbers(block_ids)
        if len(ids) != len(keys) * per_chunk:
            raise ValueError(
                f"{len(keys)} keys need {len(keys) * per_chunk} block ids, {per_chunk} each, not {len(ids)}"
            )
        spans = Spans(ids, (len(ids),), (0,))
        self._layout.plan(
            spans, np.zeros(len(keys), np.int64)
        )  # refuses wrong ids here, on the caller's thread
        if distinct:
            _check_distinct(ids)
        return DeviceBlocks(
            self, dict(zip(keys, ids.reshape(len(keys), per_chunk), strict=True)), self._copies.mark()
        )

    def prepare(self, arena: Arena) -> None:
        """Make an arena's pages ready for this device's copies, in the background."""
        self._arena = arena
        with self._copies.device():
            arena.pin_in_background()

    @property
    def submits_may_wait(self) -> bool:
        """Whether to submit a copy may take as long as the copy: not all slots are page-locked yet."""
        return self._copies.waits_for_pageable and (self._arena is None or not self._arena.pinning.is_whole)

    def close_now(self) -> None:
        """Wait for the copies in flight, then release the tensors; idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._copies.close()
            self._tensors = ()

    async def close(self) -> None:
        """`close_now`, for an event loop."""
        await settled(asyncio.to_thread(self.close_now))

    @property
    def closed(self) -> bool:
        return self._closed

    def _submit(self, spans: Spans, host_addresses: Addresses, lane: Lane, after: Mark) -> CopyJob:
        plan = self._layout.plan(spans, host_addresses)
        with self._lock:
            if self._closed:
                return RefusedJob(plan.size_bytes, "the gpu tier is closed")
            return self._copies.submit(plan, lane, self._copies.mark() if after is None else after)


class DeviceBlocks:
    """The device blocks of one job, as a tier: a load reads the device, a store writes it.

    From the start, the blocks count as holding every key's chunk.
    """

    def __init__(self, gpu: GpuTier, blocks: dict[ChunkKey, Addresses], after: Mark) -> None:
        self.name = gpu.name
        self._gpu = gpu
        self._blocks = blocks
        self._after = after
        self._held = set(blocks)
        self._closed = False

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        return [key in self._held and not self._closed for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await self._copy(self._gpu.submit_load, keys, buffers, self._blocks.keys())
        self._held.update(outcome.succeeded)
        return outcome

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self._copy(self._gpu.submit_store, keys, buffers, self._held)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        self._held.difference_update(keys)

    async def flush(self) -> None:
        """Nothing to do: device memory cannot be made durable."""

    def stats(self) -> TierStats:
        size = len(self._held) * self._gpu.part_bytes
        return TierStats(len(self._held), size, 0)

    async def close(self) -> None:
        self._closed = True

    async def _copy(
        self,
        submit: Callable[[Spans, Addresses, Mark], CopyJob],
        keys: Sequence[ChunkKey],
        buffers: Sequence[Buffer],
        known: Any,
    ) -> Outcome:
        if self._closed or self._gpu.closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        failed = {key: Failure.MISSING for key in keys if key not in known}
        chosen = [(key, buffer) for key, buffer in zip(keys, buffers, strict=True) if key not in failed]
        if not chosen:
            return Outcome.of(keys, failed)
        ids = np.concatenate([self._blocks[key] for key, _ in chosen])
        addresses = np.array([self._address(buffer) for _, buffer in chosen], np.int64)
        spans = Spans(ids, (len(ids),), (0,))
        job = await self._copied(partial(submit, spans, addresses, self._after))
        if job.error is not None:
            failed |= dict.fromkeys((key for key, _ in chosen), Failure.IO_ERROR)
        return Outcome.of(keys, failed)

    async def _copied(self, submit: Callable[[], CopyJob]) -> CopyJob:
        """The job, once it has ended. The loop does not wait for a driver that waits for the copy."""
        if self._gpu.submits_may_wait:
            return await settled(_copied_on_a_thread(submit))
        job = submit()
        await settled(job.ended())
        return job

    def _address(self, buffer: Buffer) -> int:
        assert len(buffer) >= self._gpu.part_bytes, "a slot holds a whole chunk"
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


async def _copied_on_a_thread(submit: Callable[[], CopyJob]) -> CopyJob:
    job = await asyncio.to_thread(submit)
    await job.ended()
    return job


class _ThreadJob:
    """A copy on a thread."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.error: str | None = None
        self.seconds = 0.0
        self._copied: Future[None] | None = None  # until it is done
        self._is_done = False  # read in every step of a server, which takes no lock for it

    def begin(self, thread: ThreadPoolExecutor, copy: Callable[[], float]) -> None:
        """Have the thread copy; `copy` returns the seconds it took."""
        self._copied = thread.submit(self._run, copy)

    def done(self) -> bool:
        return self._is_done

    def wait(self, timeout: float | None) -> bool:
        copied = self._copied
        return self._is_done or copied is None or bool(wait([copied], timeout).done)

    async def ended(self) -> None:
        copied = self._copied
        if not self._is_done and copied is not None:
            await asyncio.wait([asyncio.wrap_future(copied)])

    def _run(self, copy: Callable[[], float]) -> None:
        try:
            self.seconds = copy()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._is_done = True
            self._copied = None  # freed here, and not in a step of the server


class CpuCopies:
    """Copies between tensors in plain memory and slots, one thread a lane."""

    waits_for_pageable = False

    def __init__(self) -> None:
        self._threads = {lane: ThreadPoolExecutor(1, f"kvtier-copy-{lane.value}") for lane in Lane}

    def device(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> Mark:
        """Nothing to capture: the caller's writes have happened."""
        return ()

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        job = _ThreadJob(plan.size_bytes)
        job.begin(self._threads[lane], partial(self.copy, plan, lane))
        return job

    def copy(self, plan: CopyPlan, lane: Lane) -> float:
        """Copy every run; returns the seconds it took. On the lane's thread."""
        started_s = time.perf_counter()
        source, target = (plan.device, plan.host) if lane is Lane.STORE else (plan.host, plan.device)
        for to, origin, size in zip(target.tolist(), source.tolist(), plan.sizes.tolist(), strict=True):
            (_short_memmove if size < HOLD_GIL_BYTES else _memmove)(to, origin, size)
        return time.perf_counter() - started_s

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True)


def _copies_for(device: torch.device) -> Copies:
    if device.type == "cpu":
        return CpuCopies()
    if device.type == "cuda":  # ROCm's torch says "cuda" as well
        from .cuda import CudaCopies

        return CudaCopies(device)
    raise ValueError(f"KV tensors must be on a CUDA or ROCm device or in plain memory, not on {device}")


def _check_distinct(ids: Addresses) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(f"block {unique[counts > 1][0]} is listed twice, but takes only one chunk")


def _rows(tensor: Tensor) -> Rows:
    stride_bytes = tensor.stride(0) * tensor.element_size()
    return Rows(tensor.data_ptr(), stride_bytes, tensor[0].nbytes, tensor.shape[0])


def _page(rows: Sequence[Rows], index: int, page_bytes: int) -> Page:
    if not 0 < page_bytes <= rows[index].row_bytes:
        row_bytes = rows[index].row_bytes
        raise ValueError(f"tensor {index}: a page of {page_bytes} bytes does not fit a row of {row_bytes}")
    return Page(index, page_bytes)
