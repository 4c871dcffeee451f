"""What copies between a device and slots cost: bandwidth, compute slowed down, time to submit.

One long file: the three measurements share the competitors, and each competitor is a few lines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from kvtier.tiers.device.copies import CopyJob, Lane, Mark
from kvtier.tiers.device.copyplan import CopyPlan, KVLayout, Page, Rows, Spans
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.pinned.arena import Arena

KIB = 1024
MIB = 1 << 20

PAGE_SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 2 * MIB, 8 * MIB)
QUICK_PAGE_SIZES = (16 * KIB, MIB)
TRANSFER_BYTES_MAX = 256 * MIB  # each way; a prompt of some thousand tokens
TRANSFER_PAGES_MAX = 8192  # 128 blocks of 64 layers

STORE, LOAD = "store", "load"
WAYS = ((STORE,), (LOAD,), (STORE, LOAD))

SUBMIT_BLOCKS = 64
SUBMIT_LAYERS = 32
SUBMIT_PAGE_BYTES = 16 * KIB
SUBMIT_PROMISE_US = 50.0  # median
SUBMITS = 300
SUBMITS_BEFORE = 30  # not counted: what is made once, and cold caches

MATRIX = 8192  # elements a side, in bfloat16: compute-bound on any GPU
MATMULS = 50
SLOWED_PAGE_BYTES = 64 * KIB


class Mover(Protocol):
    """Somebody who copies scattered pages between the device and page-locked memory."""

    name: str

    def start(self, way: str) -> Callable[[], bool]:
        """Begin one transfer; return what says whether it has ended."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """One transfer each way, in pages of one tensor; the ways use different halves of it.

    Attributes:
        device_pages: for each way the pages on the device, in no order.
        host_pages: for each way where they go to or come from, in another order.
    """

    tensor: torch.Tensor
    device_pages: dict[str, np.ndarray[Any, np.dtype[np.int64]]]
    host_pages: dict[str, np.ndarray[Any, np.dtype[np.int64]]]

    @classmethod
    def of_pages(cls, page_bytes: int, device: torch.device) -> Work:
        count = min(TRANSFER_BYTES_MAX // page_bytes, TRANSFER_PAGES_MAX)
        random = np.random.default_rng(page_bytes)
        halves = {STORE: 0, LOAD: count}
        tensor = torch.zeros(2 * count, page_bytes, dtype=torch.uint8, device=device)
        device_pages, host_pages = (
            {way: random.permutation(count) + start for way, start in halves.items()} for _ in range(2)
        )
        return cls(tensor, device_pages, host_pages)

    @property
    def page_bytes(self) -> int:
        return self.tensor.shape[1]

    @property
    def count(self) -> int:
        return self.tensor.shape[0] // 2

    @property
    def bytes_each_way(self) -> int:
        return self.count * self.page_bytes


class Kvtier:
    """The gpu tier and a page-locked arena; a page is a block, and a chunk of its own."""

    name = "kvtier"

    def __init__(self, work: Work) -> None:
        self._gpu = GpuTier.of_tensors([work.tensor])
        self._arena = Arena.private(2 * work.count, work.page_bytes)
        self._prepare()
        self._spans = {way: Spans(ids, (len(ids),), (0,)) for way, ids in work.device_pages.items()}
        self._addresses = {way: self._arena.part_address(ids, 0) for way, ids in work.host_pages.items()}
        self._submit = {STORE: self._gpu.submit_store, LOAD: self._gpu.submit_load}
        self._idle = torch.cuda.Stream(work.tensor.device)  # so that no copy waits for the compute stream

    def start(self, way: str) -> Callable[[], bool]:
        with torch.cuda.stream(self._idle):
            return self._submit[way](self._spans[way], self._addresses[way]).done

    def close(self) -> None:
        self._gpu.close_now()
        self._arena.close()

    def _prepare(self) -> None:
        self._gpu.prepare(self._arena)
        self._arena.pinning.wait()


class Unpinned(Kvtier):
    """The same from slots that are there, and not page-locked."""

    name = "kvtier, unpinned"

    def _prepare(self) -> None:
        self._arena.pinning.begin(None)
        self._arena.pinning.wait()


class _OnStreams:
    """Copies on one stream a way, between the tensor and memory that torch has page-locked."""

    def __init__(self, work: Work) -> None:
        self._host = torch.zeros(work.tensor.shape, dtype=torch.uint8, pin_memory=True)
        self._streams = {way: torch.cuda.Stream(work.tensor.device) for way in work.device_pages}

    def start(self, way: str) -> Callable[[], bool]:
        stream, end = self._streams[way], torch.cuda.Event()
        with torch.cuda.stream(stream):
            self._copy(way)
        end.record(stream)
        return end.query

    def _copy(self, way: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


class OneMemcpy(_OnStreams):
    """The limit: as many bytes in one piece."""

    name = "memcpy"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        halves = {STORE: slice(0, work.count), LOAD: slice(work.count, None)}
        self._pairs = {way: (work.tensor[half], self._host[half]) for way, half in halves.items()}

    def _copy(self, way: str) -> None:
        on_device, on_host = self._pairs[way]
        source, target = (on_device, on_host) if way == STORE else (on_host, on_device)
        target.copy_(source, non_blocking=True)


class TorchPerPage(_OnStreams):
    """`copy_` page by page; the views of the pages are there beforehand."""

    name = "torch"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        on_device, on_host = work.tensor.unbind(), self._host.unbind()
        self._pairs = {
            way: [(on_device[i], on_host[j]) for i, j in zip(ids.tolist(), work.host_pages[way], strict=True)]
            for way, ids in work.device_pages.items()
        }

    def _copy(self, way: str) -> None:
        if way == STORE:
            for on_device, on_host in self._pairs[way]:
                on_host.copy_(on_device, non_blocking=True)
        else:
            for on_device, on_host in self._pairs[way]:
                on_device.copy_(on_host, non_blocking=True)


class Gather(_OnStreams):
    """The pages gathered on the device by one kernel and moved by one memcpy, and the other way back."""

    name = "gather"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._tensor = work.tensor
        halves = {STORE: slice(0, work.count), LOAD: slice(work.count, None)}
        self._hosts = {way: self._host[half] for way, half in halves.items()}
        self._staged = {way: torch.zeros_like(work.tensor[half]) for way, half in halves.items()}
        self._ids = {
            way: torch.from_numpy(ids[np.argsort(work.host_pages[way])]).to(work.tensor.device)
            for way, ids in work.device_pages.items()
        }

    def _copy(self, way: str) -> None:
        host, staged, ids = self._hosts[way], self._staged[way], self._ids[way]
        if way == STORE:
            torch.index_select(self._tensor, 0, ids, out=staged)
            host.copy_(staged, non_blocking=True)
        else:
            staged.copy_(host, non_blocking=True)
            self._tensor.index_copy_(0, ids, staged)


class VllmBatch(_OnStreams):
    """vLLM's `swap_blocks_batch`; its lists of addresses are there beforehand, which in vLLM they are not."""

    name = "vllm"

    def __init__(self, work: Work) -> None:
        from vllm import _custom_ops

        super().__init__(work)
        self._swap = _custom_ops.swap_blocks_batch
        self._arguments = {}
        for way, ids in work.device_pages.items():
            on_device = torch.from_numpy(work.tensor.data_ptr() + ids * work.page_bytes)
            on_host = torch.from_numpy(self._host.data_ptr() + work.host_pages[way] * work.page_bytes)
            source, target = (on_device, on_host) if way == STORE else (on_host, on_device)
            self._arguments[way] = source, target, torch.full_like(source, work.page_bytes)

    def _copy(self, way: str) -> None:
        self._swap(*self._arguments[way])


def movers() -> list[Callable[[Work], Mover]]:
    """Who is compared: ourselves, the limit, and the peers that are installed."""
    return [Kvtier, Unpinned, OneMemcpy, TorchPerPage, Gather, *([VllmBatch] if find_spec("vllm") else [])]


@dataclass(frozen=True, slots=True)
class Rate:
    """One mover's medians for one page size and one or both ways.

    Attributes:
        gb_per_s: 10^9 bytes a second, of both ways together; from the call that starts to the end.
        of_memcpy: the same, divided by that of one memcpy of as many bytes in the same runs.
    """

    mover: str
    page_bytes: int
    ways: str
    gb_per_s: float
    of_memcpy: float


def rates(device: torch.device, page_sizes: Sequence[int], runs: int) -> list[Rate]:
    """Measure every mover at every page size, alternating, whoever begins changing from run to run."""
    return [rate for page_bytes in page_sizes for rate in _rates_of(page_bytes, device, runs)]


def _rates_of(page_bytes: int, device: torch.device, runs: int) -> list[Rate]:
    work = Work.of_pages(page_bytes, device)
    present = [make(work) for make in movers()]
    samples: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    try:
        for run in range(-1, runs):  # the first one warms up
            for ways in WAYS:
                for mover in _rotated(present, run):
                    seconds = _seconds(mover, ways)
                    if run >= 0:
                        samples.setdefault((mover.name, ways), []).append(seconds)
    finally:
        for mover in present:
            mover.close()
    gb_per_s = {
        place: work.bytes_each_way * len(place[1]) / statistics.median(seconds) / 1e9
        for place, seconds in samples.items()
    }
    return [
        Rate(name, page_bytes, "+".join(ways), rate, rate / gb_per_s[OneMemcpy.name, ways])
        for (name, ways), rate in gb_per_s.items()
    ]


def _seconds(mover: Mover, ways: Sequence[str]) -> float:
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    ends = [mover.start(way) for way in ways]
    while not all(end() for end in ends):
        pass  # asked without a pause: a pause would be in the figure
    return time.perf_counter() - began_s


def _rotated(present: Sequence[Mover], turns: int) -> list[Mover]:
    first = turns % len(present)
    return [*present[first:], *present[:first]]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How much longer matrix products take while somebody copies all the time: medians.

    Attributes:
        ratio: seconds with copies, divided by seconds without in the same runs.
        moved_gb_per_s: what was copied meanwhile, in 10^9 bytes a second.
    """

    mover: str
    ways: str
    ratio: float
    moved_gb_per_s: float


def slowdowns(device: torch.device, runs: int) -> list[Slowdown]:
    """Multiply matrices alone and beside the transfers of each mover, alternating."""
    work = Work.of_pages(SLOWED_PAGE_BYTES, device)
    present = [make(work) for make in movers()]
    matrix = torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(matrix)
    alone: list[float] = []
    beside: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for run in range(-1, runs):
            for ways in WAYS:
                quiet_s, _ = _multiply(matrix, product, None, ways)
                for mover in _rotated(present, run):
                    seconds, transfers = _multiply(matrix, product, mover, ways)
                    if run >= 0:
                        moved = transfers * work.bytes_each_way / seconds / 1e9
                        beside.setdefault((mover.name, "+".join(ways)), []).append((seconds, moved))
                if run >= 0:
                    alone.append(quiet_s)
    finally:
        for mover in present:
            mover.close()
    alone_s = statistics.median(alone)
    return [
        Slowdown(name, ways, _median(samples, 0) / alone_s, _median(samples, 1))
        for (name, ways), samples in beside.items()
    ]


def _median(samples: Sequence[tuple[float, float]], column: int) -> float:
    return statistics.median(sample[column] for sample in samples)


def _multiply(
    matrix: torch.Tensor, product: torch.Tensor, mover: Mover | None, ways: Sequence[str]
) -> tuple[float, float]:
    """Return the seconds of `MATMULS` products, and how many transfers ended meanwhile."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    ends = {} if mover is None else {way: mover.start(way) for way in ways}
    ended = 0
    start.record()
    for _ in range(MATMULS):
        torch.mm(matrix, matrix, out=product)
    end.record()
    while not end.query():
        for way, has_ended in ends.items():
            if mover is not None and has_ended():
                ended += 1
                ends[way] = mover.start(way)
    while not all(has_ended() for has_ended in ends.values()):
        pass
    return float(start.elapsed_time(end)) / 1000, ended


class _Done:
    """The job of a copy that nobody made."""

    error = None
    seconds = 0.0

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None) -> bool:
        return True

    async def ended(self) -> None:
        """It has."""


class NoCopies:
    """Copies nothing, so that what is left is the planning."""

    waits_for_pageable = False

    def device(self) -> Any:
        raise AssertionError("no arena is prepared for it")

    def mark(self) -> Mark:
        return ()

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        return _Done(plan.size_bytes)

    def close(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True, slots=True)
class SubmitCost:
    """Host time of one `submit_store` of 64 blocks of 32 layers, in microseconds.

    Attributes:
        what: "planning" with a device that copies nothing, "submit" with the real one.
        runs_count: runs of bytes in a plan.
    """

    what: str
    runs_count: int
    median_us: float
    p99_us: float

    @property
    def is_within_promise(self) -> bool:
        return self.median_us <= SUBMIT_PROMISE_US


def submit_costs(device: torch.device) -> list[SubmitCost]:
    """Measure planning alone and, where there is a device, all that submitting a transfer takes."""
    tensors = [
        torch.zeros(4 * SUBMIT_BLOCKS, SUBMIT_PAGE_BYTES, dtype=torch.uint8, device=device)
        for _ in range(SUBMIT_LAYERS)
    ]
    chunk_bytes = SUBMIT_LAYERS * SUBMIT_PAGE_BYTES
    arena = Arena.private(2 * SUBMIT_BLOCKS, chunk_bytes)
    planning = GpuTier(_layout(tensors), NoCopies())
    real = GpuTier.of_tensors(tensors) if device.type == "cuda" else None
    try:
        costs = [_submit_cost("planning", planning, arena)]
        if real is not None:
            real.prepare(arena)
            arena.pinning.wait()
            costs.append(_submit_cost("submit", real, arena))
    finally:
        for tier in filter(None, (planning, real)):
            tier.close_now()
        arena.close()
    return costs


def _layout(tensors: Sequence[torch.Tensor]) -> KVLayout:
    rows = [Rows(each.data_ptr(), each.stride(0), each[0].nbytes, len(each)) for each in tensors]
    return KVLayout(rows, [[Page(index, row.row_bytes) for index, row in enumerate(rows)]], 1)


def _submit_cost(what: str, gpu: GpuTier, arena: Arena) -> SubmitCost:
    random = np.random.default_rng(0)
    took_s = []
    for _ in range(SUBMITS_BEFORE + SUBMITS):
        ids = 2 * random.permutation(2 * SUBMIT_BLOCKS)[:SUBMIT_BLOCKS]  # no two neighbours: nothing merges
        addresses = arena.part_address(random.permutation(2 * SUBMIT_BLOCKS)[:SUBMIT_BLOCKS], 0)
        spans = Spans(ids, (SUBMIT_BLOCKS,), (0,))
        began_s = time.perf_counter()
        job = gpu.submit_store(spans, addresses)
        took_s.append(time.perf_counter() - began_s)
        job.wait(None)
    counted_us = sorted(1e6 * seconds for seconds in took_s[SUBMITS_BEFORE:])
    p99_us = counted_us[int(0.99 * len(counted_us))]
    return SubmitCost(what, SUBMIT_BLOCKS * SUBMIT_LAYERS, statistics.median(counted_us), p99_us)
