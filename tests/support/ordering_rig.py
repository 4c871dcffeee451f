"""A gpu tier on few blocks and slots, whose kernels and copies run one at a time, under a race detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, FakeDriver
from race_detector import Access, RaceDetector, Ranges, SteppedCopies

from kvtier.tiers.device import cuda
from kvtier.tiers.device.copies import Copies, CopyJob, Lane, Mark
from kvtier.tiers.device.copyplan import Addresses, CopyPlan, KVLayout, Page, Rows, Spans
from kvtier.tiers.device.cuda import BatchedMemcpy, CudaCopies
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.testing import aligned_buffers

BLOCKS = 5
SLOTS = 4
LAYERS = 2
ROW_BYTES = 16
NOBODYS = 255  # what blocks and slots hold before anybody wrote them


class Stepped(Copies, Protocol):
    """Copies whose work runs when the test lets it, and the compute stream beside them."""

    fails_at: int | None

    def launch(self, work: Callable[[], None], *, reads: Ranges = (), writes: Ranges = ()) -> None: ...
    def run_kernel(self) -> None: ...
    def step(self, lane: Lane) -> None: ...
    def free(self) -> None: ...


class SteppedCudaCopies(CudaCopies):
    """CudaCopies on a device that is not there, announcing its copies to a race detector."""

    waits_for_pageable = False  # all memory of the rig counts as page-locked

    def __init__(self, detector: RaceDetector) -> None:
        self._patch = pytest.MonkeyPatch()
        self.cuda = FakeCuda()
        self.cuda.install(self._patch)
        self.driver = FakeDriver(self.cuda)
        self.driver.install(self._patch)
        self._patch.setattr(cuda, "POLL_S", 0)
        self.detector = detector
        self.fails_at: int | None = None
        self._kernels_before: dict[int, int] = {}  # by the mark's id
        self._marks: list[Mark] = []  # keeps the ids in use
        self._access: Access | None = None
        driver_call = BatchedMemcpy.find()
        assert driver_call is not None
        self._driver_call = driver_call
        super().__init__(DEVICE, self._announced)

    def launch(self, work: Callable[[], None], *, reads: Ranges = (), writes: Ranges = ()) -> None:
        access = self.detector.launch(reads=reads, writes=writes)

        def kernel() -> None:
            self.detector.begin(access)
            work()
            self.detector.end(access)

        self.cuda.compute.put(kernel)

    def run_kernel(self) -> None:
        self.cuda.compute.step()

    def step(self, lane: Lane) -> None:
        self._streams[lane].step()  # type: ignore[attr-defined]  # a FakeStream

    def free(self) -> None:
        self.cuda.drain()

    def mark(self) -> Mark:
        mark = super().mark()
        self._marks.append(mark)
        self._kernels_before[id(mark)] = self.detector.kernels
        return mark

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        access = self._access = self.detector.submit(plan, lane, self._kernels_before[id(after)])
        self.driver.fails_at, self.fails_at = self.fails_at, None
        job = super().submit(plan, lane, after)
        access.done = job.done
        return job

    def close(self) -> None:
        self.free()
        super().close()
        self._patch.undo()

    def _announced(self, targets: Addresses, sources: Addresses, sizes: Addresses, handle: int) -> None:
        access, stream = self._access, self.cuda.stream(handle)
        assert access is not None, "a copy is announced when it is submitted"
        stream.put(lambda: self.detector.begin(access), is_work=False)
        try:
            self._driver_call(targets, sources, sizes, handle)
        finally:
            stream.put(lambda: self.detector.end(access), is_work=False)


class Rig:
    """Blocks of `LAYERS` rows and slots that hold one block each; a block's bytes are all one value.

    Attributes:
        seen: (block, the value that was there) for each kernel that has read a block.
    """

    def __init__(self, copies: Callable[[RaceDetector], Stepped], tier: type[GpuTier] = GpuTier) -> None:
        self.detector = RaceDetector()
        self.copies = copies(self.detector)
        self.tensors = [torch.full((BLOCKS, ROW_BYTES), NOBODYS, dtype=torch.uint8) for _ in range(LAYERS)]
        rows = [Rows(tensor.data_ptr(), ROW_BYTES, ROW_BYTES, BLOCKS) for tensor in self.tensors]
        layout = KVLayout(rows, [[Page(layer, ROW_BYTES) for layer in range(LAYERS)]], 1)
        self.gpu = tier(layout, self.copies, self.tensors)
        self.slots = aligned_buffers(SLOTS, self.gpu.part_bytes)
        for slot in self.slots:
            slot[:] = bytes([NOBODYS]) * len(slot)
        self.seen: list[tuple[int, int]] = []

    def store(self, blocks: Sequence[int], slots: Sequence[int]) -> CopyJob:
        return self.gpu.submit_store(_spans(blocks), self._addresses(slots))

    def load(self, blocks: Sequence[int], slots: Sequence[int], *, expedited: bool = False) -> CopyJob:
        return self.gpu.submit_load(_spans(blocks), self._addresses(slots), expedited=expedited)

    def write(self, block: int, value: int) -> None:
        """Launch a kernel that fills a block."""

        def kernel() -> None:
            for tensor in self.tensors:
                tensor[block] = value

        self.copies.launch(kernel, writes=self._block(block))

    def read(self, block: int) -> None:
        """Launch a kernel that reads a block into `seen`."""

        def kernel() -> None:
            values = torch.cat([tensor[block] for tensor in self.tensors]).tolist()
            self.seen.append((block, _only(values)))

        self.copies.launch(kernel, reads=self._block(block))

    def slot(self, slot: int) -> int:
        """Read a slot on the host, at once."""
        self.detector.host(reads=self._slot(slot))
        return _only(list(self.slots[slot]))

    def fill(self, slot: int, value: int) -> None:
        """Write a slot on the host, at once, as another tier does."""
        self.detector.host(writes=self._slot(slot))
        self.slots[slot][:] = bytes([value]) * len(self.slots[slot])

    def close(self) -> None:
        self.gpu.close_now()

    def _block(self, block: int) -> Ranges:
        addresses = [tensor.data_ptr() + block * ROW_BYTES for tensor in self.tensors]
        return tuple((address, address + ROW_BYTES) for address in addresses)

    def _slot(self, slot: int) -> Ranges:
        (address,) = self._addresses([slot]).tolist()
        return ((address, address + self.gpu.part_bytes),)

    def _addresses(self, slots: Sequence[int]) -> Addresses:
        return np.array([np.frombuffer(self.slots[slot], np.uint8).ctypes.data for slot in slots], np.int64)


def _spans(blocks: Sequence[int]) -> Spans:
    return Spans(np.array(blocks, np.int64), (len(blocks),), (0,))


def _only(values: Sequence[int]) -> int:
    """The value that all of them have."""
    assert len(set(values)) == 1, f"torn: {values}"
    return values[0]


def stepped_threads(detector: RaceDetector) -> Stepped:
    return SteppedCopies(detector)


def stepped_cuda(detector: RaceDetector) -> Stepped:
    return SteppedCudaCopies(detector)
