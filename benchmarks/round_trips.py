"""Round trips through the gpu tier: blocks go to slots and come back as other blocks, bit by bit.

A layout is a set of strided tensors in one flat piece of device memory, so that the whole piece can be
compared: what was to move, what lies between rows, and all blocks that had nothing to do with it. The slots
are compared as well, with what `tiers/device/copyplan.py` guarantees of them.

On a GPU the compute stream is kept busy, writes the blocks at the end of its queue, and the copy is submitted
at once: a copy that does not wait for the stream takes old bytes, or is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch

from kvtier.tiers.device.copies import CopyJob
from kvtier.tiers.device.copyplan import Spans
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.pinned.arena import Arena

Ids = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8)

BLOCKS = 64
LAYERS = 4
PAGE = 1000  # elements; no power of two, so that rows begin at all kinds of addresses
PADDING = 24  # elements

DELAY_S = 0.005  # far longer than it takes to submit a copy

MATRIX = 2048  # elements a side: a fraction of DELAY_S on any GPU, and no more than seconds under a sanitizer

WAIT_S = 60.0  # for a copy of a few KiB behind a busy stream; under a sanitizer all is slow

UNUSED = 0xA5  # what slots hold before a store


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor (BLOCKS, row) within the flat memory; all in elements."""

    start: int
    stride: int
    row: int

    @property
    def end(self) -> int:
        return self.start + BLOCKS * self.stride


@dataclass(frozen=True, slots=True)
class Layout:
    """How a server lays out its cache.

    Attributes:
        groups: for each KV-cache group the tensors it uses, as (index, elements of a row that are its own).
    """

    name: str
    tensors: tuple[Strided, ...]
    groups: tuple[tuple[tuple[int, int], ...], ...]


def _whole(name: str, tensors: Sequence[Strided]) -> Layout:
    return Layout(name, tuple(tensors), (tuple((i, each.row) for i, each in enumerate(tensors)),))


def _side_by_side(count: int, *, stride: int, row: int) -> list[Strided]:
    return [Strided(index * BLOCKS * stride, stride, row) for index in range(count)]


LAYOUTS = (
    _whole("blocks first", _side_by_side(LAYERS, stride=2 * PAGE, row=2 * PAGE)),
    _whole("K and V apart", _side_by_side(2 * LAYERS, stride=PAGE, row=PAGE)),
    _whole("layers packed", [Strided(layer * PAGE, LAYERS * PAGE, PAGE) for layer in range(LAYERS)]),
    _whole("rows padded", _side_by_side(LAYERS, stride=PAGE + PADDING, row=PAGE)),
    Layout(
        "groups share tensors",
        tuple(_side_by_side(3, stride=PAGE, row=PAGE)),
        (((0, PAGE), (1, PAGE), (2, PAGE)), ((0, 300), (2, 77)), ((1, PAGE),)),
    ),
)


@dataclass(frozen=True, slots=True)
class Cover:
    """Which logical blocks are stored, and which of them are loaded again: (first, count) each."""

    blocks_per_chunk: int
    stored: tuple[int, int]
    loaded: tuple[int, int]

    @property
    def chunks(self) -> int:
        """Chunks that a store touches."""
        return _chunk_of(self, sum(self.stored) - 1) - _chunk_of(self, self.stored[0]) + 1


COVERS = (
    Cover(1, (0, 10), (0, 10)),
    Cover(1, (5, 10), (6, 7)),
    Cover(4, (0, 8), (0, 8)),
    Cover(4, (2, 11), (3, 8)),  # first and last chunk partly covered, both times
    Cover(3, (1, 1), (1, 1)),  # one block amid a chunk
)


@dataclass(frozen=True, slots=True)
class Case:
    layout: Layout
    dtype: torch.dtype
    cover: Cover


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the trips of one case.

    Attributes:
        wrong_bytes: of all trips; in device memory and in slots.
        busy: submits after which the compute stream had not yet written the blocks.
        error: what the first job that failed said.
    """

    layout: str
    dtype: str
    blocks_per_chunk: int
    stored: tuple[int, int]
    loaded: tuple[int, int]
    trips: int
    wrong_bytes: int
    busy: int
    error: str | None

    @property
    def good(self) -> bool:
        return not self.wrong_bytes and self.error is None


def cases() -> Iterator[Case]:
    yield from (Case(*each) for each in product(LAYOUTS, DTYPES, COVERS))


class ComputeStream:
    """The caller's stream: kept busy, and asked whether it still is. In plain memory there is none."""

    def __init__(self, device: torch.device) -> None:
        self._matrix: torch.Tensor | None = None
        if device.type == "cuda":
            self._matrix = torch.zeros(MATRIX, MATRIX, device=device)
            self._launches = 1
            self._launches = max(1, round(DELAY_S / self._seconds_of_delay()))

    def delay(self) -> None:
        """Put `DELAY_S` of work into the queue."""
        if self._matrix is not None:
            for _ in range(self._launches):
                torch.mm(self._matrix, self._matrix)

    def note(self) -> Callable[[], bool]:
        """Return a function that says whether anything queued so far is still to be done."""
        if self._matrix is None:
            return lambda: False
        event = torch.cuda.Event()
        event.record()
        return lambda: not event.query()

    def _seconds_of_delay(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.delay()  # the first one loads the kernel
        start.record()
        self.delay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


class Trip:
    """One case on one device: the tensors, the tier and the slots."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self._case = case
        self._random = np.random.default_rng(seed)
        self._item_bytes = case.dtype.itemsize
        size = max(tensor.end for tensor in case.layout.tensors) * self._item_bytes
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        self._content = self._memory
        elements = self._memory.view(case.dtype)
        views = [
            elements.as_strided((BLOCKS, each.row), (each.stride, 1), each.start)
            for each in case.layout.tensors
        ]
        pages = [[(i, n * self._item_bytes) for i, n in group] for group in case.layout.groups]
        self._gpu = GpuTier.of_tensors(views, blocks_per_chunk=case.cover.blocks_per_chunk, groups=pages)
        self._slots_count = case.cover.chunks * len(case.layout.groups)
        self._arena = Arena.private(self._slots_count, self._gpu.part_bytes)
        self._gpu.prepare(self._arena)
        self._arena.pinning.wait()

    def close(self) -> None:
        self._gpu.close_now()
        self._arena.close()

    def run(self, stream: ComputeStream, *, scattered: bool, expedited: bool) -> tuple[int, int, str | None]:
        """Go there and back once; return wrong bytes, submits onto a busy stream, and an error."""
        sources, targets = self._block_ids(scattered)
        slots = self._random.permutation(self._slots_count).reshape(len(sources), -1)
        for index in range(self._slots_count):
            self._arena.buffer(index)[:] = bytes([UNUSED]) * self._arena.slot_bytes
        first, second = self._noise(), self._noise()
        cover = self._case.cover

        busy = self._written(stream, first)
        store = self._gpu.submit_store(
            self._spans(sources, cover.stored), self._addresses(slots, cover.stored)
        )
        busy_count = int(busy())
        error = _end_of(store)
        wrong_bytes = self._wrong_in_slots(first, sources, slots)

        busy = self._written(stream, second)
        load = self._gpu.submit_load(
            self._spans(targets, cover.loaded), self._addresses(slots, cover.loaded), expedited=expedited
        )
        busy_count += int(busy())
        error = error or _end_of(load)
        came_back = self._memory.cpu().numpy()
        wrong_bytes += int(np.count_nonzero(came_back != self._expected(first, second, sources, targets)))
        return wrong_bytes, busy_count, error

    def _noise(self) -> Bytes:
        return self._random.integers(0, 256, self._memory.numel(), np.uint8)

    def _written(self, stream: ComputeStream, content: Bytes) -> Callable[[], bool]:
        """Queue a write of the whole memory; return whether it is still to come."""
        # Kept until the next write: without torch's cache, freeing it waits for the stream.
        self._content = torch.from_numpy(content).to(self._memory.device)
        stream.delay()
        self._memory.copy_(self._content)
        return stream.note()

    def _block_ids(self, scattered: bool) -> tuple[list[Ids], list[Ids]]:
        """For each group the blocks to store, and those to load into; no block twice."""
        ids = self._random.permutation(BLOCKS) if scattered else np.arange(BLOCKS)
        counts = [self._case.cover.stored[1], self._case.cover.loaded[1]] * len(self._case.layout.groups)
        ends = np.cumsum([0, *counts])
        parts = [ids[begin:end].astype(np.int64) for begin, end in pairwise(ends)]
        return parts[::2], parts[1::2]

    def _spans(self, ids: Sequence[Ids], logical: tuple[int, int]) -> Spans:
        first, count = logical
        return Spans(np.concatenate(ids), (count,) * len(ids), (first,) * len(ids))

    def _addresses(self, slots: npt.NDArray[np.int64], logical: tuple[int, int]) -> Ids:
        """Where the chunks that hold these logical blocks begin, group after group."""
        cover = self._case.cover
        skipped = _chunk_of(cover, logical[0]) - _chunk_of(cover, cover.stored[0])
        count = _chunk_of(cover, sum(logical) - 1) - _chunk_of(cover, logical[0]) + 1
        return self._arena.part_address(slots[:, skipped : skipped + count].ravel(), 0)

    def _wrong_in_slots(self, stored: Bytes, sources: Sequence[Ids], slots: npt.NDArray[np.int64]) -> int:
        expected = np.full((self._slots_count, self._arena.slot_bytes), UNUSED, np.uint8)
        first, count = self._case.cover.stored
        for ids, group, chunks in zip(sources, self._case.layout.groups, slots, strict=True):
            for logical, block in zip(range(first, first + count), ids.tolist(), strict=True):
                slot = chunks[_chunk_of(self._case.cover, logical) - _chunk_of(self._case.cover, first)]
                for tensor, elements in group:
                    at, size = self._offset_in_slot(tensor, logical), elements * self._item_bytes
                    expected[slot, at : at + size] = stored[self._row(tensor, block, size)]
        found = [np.frombuffer(self._arena.buffer(index), np.uint8) for index in range(self._slots_count)]
        return int(np.count_nonzero(np.stack(found) != expected))

    def _expected(self, first: Bytes, second: Bytes, sources: Sequence[Ids], targets: Sequence[Ids]) -> Bytes:
        """The memory afterwards: loaded blocks hold what was stored of them, all else is as it was."""
        expected = second.copy()
        cover = self._case.cover
        skipped = cover.loaded[0] - cover.stored[0]
        for stored, loaded, group in zip(sources, targets, self._case.layout.groups, strict=True):
            for source, target in zip(stored[skipped:], loaded, strict=False):
                for tensor, elements in group:
                    size = elements * self._item_bytes
                    expected[self._row(tensor, target, size)] = first[self._row(tensor, source, size)]
        return expected

    def _row(self, tensor: int, block: int, size: int) -> slice:
        strided = self._case.layout.tensors[tensor]
        start = (strided.start + int(block) * strided.stride) * self._item_bytes
        return slice(start, start + size)

    def _offset_in_slot(self, tensor: int, logical: int) -> int:
        per_chunk, tensors = self._case.cover.blocks_per_chunk, self._case.layout.tensors
        before = sum(each.row for each in tensors[:tensor]) * per_chunk
        return (before + logical % per_chunk * tensors[tensor].row) * self._item_bytes


def judge(case: Case, device: torch.device, stream: ComputeStream, trips: int, seed: int) -> Verdict:
    """Make the trips of one case: the first with neighbouring blocks, the others with scattered ones."""
    trip = Trip(case, device, seed)
    try:
        results = [trip.run(stream, scattered=bool(i), expedited=bool(i % 2)) for i in range(trips)]
    finally:
        trip.close()
    wrong_bytes, busy, errors = zip(*results, strict=True)
    return Verdict(
        layout=case.layout.name,
        dtype=str(case.dtype).removeprefix("torch."),
        blocks_per_chunk=case.cover.blocks_per_chunk,
        stored=case.cover.stored,
        loaded=case.cover.loaded,
        trips=trips,
        wrong_bytes=sum(wrong_bytes),
        busy=sum(busy),
        error=next(filter(None, errors), None),
    )


def _chunk_of(cover: Cover, logical: int) -> int:
    return logical // cover.blocks_per_chunk


def _end_of(job: CopyJob) -> str | None:
    if not job.wait(WAIT_S):
        return f"not done within {WAIT_S:.0f} s"
    return job.error
