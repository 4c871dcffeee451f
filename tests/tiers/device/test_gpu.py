import asyncio
import threading

import numpy as np
import pytest
import torch

from kvtier.tiers.base import Failure, RemoveReason
from kvtier.tiers.device.copies import Lane
from kvtier.tiers.device.copyplan import KVLayout, Page, Rows, Spans
from kvtier.tiers.device.gpu import CpuCopies, GpuTier
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.testing import TierContract, aligned_buffers

BLOCKS = 32


def caches(*row_bytes, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(7)
    make = torch.randint(
        0, 256, (len(row_bytes), BLOCKS, max(row_bytes)), dtype=torch.uint8, generator=generator
    )
    return [make[i, :, :size].contiguous().view(dtype) for i, size in enumerate(row_bytes)]


def addresses(buffers):
    return np.array([np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers], np.int64)


def spans(*block_ids):
    return Spans(np.array(block_ids, np.int64), (len(block_ids),), (0,))


@pytest.fixture
def gpu():
    tier = GpuTier.of_tensors(caches(4096, 4096))
    yield tier
    tier.close_now()


class TestDeviceBlocks(TierContract):
    ANY_KEY = False

    @pytest.fixture
    async def tier(self, gpu):
        keys = self.keys(12)
        blocks = gpu.blocks(keys, range(12))
        await blocks.remove(keys, RemoveReason.REQUESTED)  # a device that nothing was computed on yet
        return blocks


class GatedCopies(CpuCopies):
    """Copies that wait at a gate, so that a test can look at the middle of one."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.began = threading.Event()

    def copy(self, plan, lane):
        self.began.set()
        assert self.gate.wait(10)
        return super().copy(plan, lane)


class BrokenCopies(CpuCopies):
    def copy(self, plan, lane):
        raise RuntimeError("device lost")


def over(tensors, copies):
    rows = [Rows(t.data_ptr(), t.stride(0) * t.element_size(), t[0].nbytes, len(t)) for t in tensors]
    pages = [Page(index, row.row_bytes) for index, row in enumerate(rows)]
    return GpuTier(KVLayout(rows, [pages], 1), copies, tensors)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("blocks_per_chunk", [1, 3])
def test_blocks_come_back_bit_by_bit_after_the_device_forgot_them(dtype, blocks_per_chunk):
    tensors = caches(512, 256, 64, dtype=dtype)
    before = [tensor.view(torch.uint8).clone() for tensor in tensors]
    gpu = GpuTier.of_tensors(tensors, blocks_per_chunk=blocks_per_chunk)
    ids = [9, 2, 30, 31, 0, 17]
    buffers = aligned_buffers(len(ids) // blocks_per_chunk, gpu.part_bytes)
    assert gpu.submit_store(spans(*ids), addresses(buffers)).wait(10)
    for tensor in tensors:
        tensor.view(torch.uint8).zero_()
    job = gpu.submit_load(spans(*ids), addresses(buffers))
    assert job.wait(10)
    assert job.error is None
    assert job.size_bytes == len(ids) * 832
    for tensor, was in zip(tensors, before, strict=True):
        raw = tensor.view(torch.uint8)
        assert torch.equal(raw[ids], was[ids])
        others = [i for i in range(BLOCKS) if i not in ids]
        assert not raw[others].any()
    gpu.close_now()


def test_rows_with_padding_between_them_keep_their_padding():
    whole = torch.arange(BLOCKS * 100, dtype=torch.int32).reshape(BLOCKS, 100)
    view, before = whole[:, :80], whole.clone()
    gpu = GpuTier.of_tensors([view])
    buffers = aligned_buffers(2, gpu.part_bytes)
    gpu.submit_store(spans(3, 4), addresses(buffers)).wait(10)
    view.zero_()
    gpu.submit_load(spans(3, 4), addresses(buffers)).wait(10)
    gpu.close_now()
    assert torch.equal(whole[3:5], before[3:5])
    assert torch.equal(whole[:, 80:], before[:, 80:])
    assert not whole[5:, :80].any()


def test_a_group_uses_only_its_own_bytes_of_a_shared_row():
    tensors = caches(100)
    before = tensors[0].clone()
    gpu = GpuTier.of_tensors(tensors, groups=[[(0, 100)], [(0, 60)]])
    assert gpu.part_bytes == 100
    buffers = aligned_buffers(2, gpu.part_bytes)
    both = Spans(np.array([5, 6], np.int64), (1, 1), (0, 0))
    gpu.submit_store(both, addresses(buffers)).wait(10)
    tensors[0].zero_()
    gpu.submit_load(both, addresses(buffers)).wait(10)
    gpu.close_now()
    assert torch.equal(tensors[0][5], before[5])
    assert torch.equal(tensors[0][6, :60], before[6, :60])
    assert not tensors[0][6, 60:].any()


def test_jobs_of_a_lane_complete_in_order_and_lanes_do_not_wait_for_each_other():
    copies = GatedCopies()
    gpu = over(caches(64), copies)
    buffers = aligned_buffers(1, gpu.part_bytes)
    stores = [gpu.submit_store(spans(0), addresses(buffers)) for _ in range(3)]
    assert copies.began.wait(10)
    assert not any(job.done() for job in stores)
    assert not stores[0].wait(0)
    copies.gate.set()
    assert stores[2].wait(10)
    assert all(job.done() for job in stores)
    gpu.close_now()


class PageableCopies(CpuCopies):
    """Copies whose submit waits for the copy while the slots are not page-locked, as CUDA's do."""

    waits_for_pageable = True

    def __init__(self):
        super().__init__()
        self.submitted_by = []
        self.began, self.gate = threading.Event(), threading.Event()

    def submit(self, plan, lane, after):
        self.submitted_by.append(threading.get_ident())
        self.began.set()
        assert self.gate.wait(10)
        return super().submit(plan, lane, after)


async def test_until_the_slots_are_page_locked_no_copy_holds_the_loop_up(monkeypatch):
    copies = PageableCopies()
    gpu = over(caches(64), copies)
    keys, loop_thread = [b"k"], threading.get_ident()
    blocks, buffers = gpu.blocks(keys, [0]), aligned_buffers(1, gpu.part_bytes)
    copy = asyncio.ensure_future(blocks.load(keys, buffers))
    assert await asyncio.get_running_loop().run_in_executor(None, copies.began.wait, 10), "the loop goes on"
    copy.cancel()
    await asyncio.sleep(0)
    assert not copy.done(), "the driver still copies"
    copies.gate.set()
    await asyncio.wait([copy])
    assert copy.cancelled()
    monkeypatch.setattr(GpuTier, "submits_may_wait", False)
    assert (await blocks.load(keys, buffers)).succeeded == (b"k",)
    assert [thread == loop_thread for thread in copies.submitted_by] == [False, True]
    gpu.close_now()


@pytest.mark.parametrize("waits", [True, False])
def test_submits_wait_until_every_piece_is_page_locked(waits, monkeypatch):
    copies = CpuCopies()
    copies.waits_for_pageable = waits
    gpu = over(caches(64), copies)
    assert gpu.submits_may_wait is waits
    arena = Arena.private(2, gpu.part_bytes)
    gpu.prepare(arena)
    arena.pinning.wait()
    assert gpu.submits_may_wait is waits, "touched is not page-locked"
    monkeypatch.setattr(type(arena.pinning), "is_whole", True)
    assert not gpu.submits_may_wait
    arena.close()
    gpu.close_now()


def test_an_expedited_load_overtakes_loads():
    class LoadsStuck(GatedCopies):
        def copy(self, plan, lane):
            return super().copy(plan, lane) if lane is Lane.LOAD else CpuCopies.copy(self, plan, lane)

    copies = LoadsStuck()
    gpu = over(caches(64), copies)
    buffers = aligned_buffers(1, gpu.part_bytes)
    stuck = gpu.submit_load(spans(0), addresses(buffers))
    assert gpu.submit_load(spans(1), addresses(buffers), expedited=True).wait(10)
    assert not stuck.done()
    copies.gate.set()
    assert stuck.wait(10)
    gpu.close_now()


def test_a_fault_of_the_device_is_the_jobs_error():
    gpu = over(caches(64), BrokenCopies())
    job = gpu.submit_store(spans(0), addresses(aligned_buffers(1, gpu.part_bytes)))
    assert job.wait(10)
    assert job.error == "RuntimeError: device lost"
    assert job.seconds == 0
    gpu.close_now()


async def test_a_fault_of_the_device_fails_every_key_of_its_blocks():
    gpu = over(caches(64), BrokenCopies())
    outcome = await gpu.blocks([b"a"], [0]).load([b"a"], aligned_buffers(1, gpu.part_bytes))
    assert outcome.failed == {b"a": Failure.IO_ERROR}
    await gpu.close()


async def test_a_cancelled_copy_returns_only_once_nothing_touches_the_buffers():
    copies = GatedCopies()
    gpu = over(caches(64), copies)
    buffers = aligned_buffers(1, gpu.part_bytes)
    task = asyncio.ensure_future(gpu.blocks([b"a"], [3]).load([b"a"], buffers))
    await asyncio.to_thread(copies.began.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    copies.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bytes(buffers[0]) == bytes(caches(64)[0][3].numpy())
    await gpu.close()


def test_device_blocks_serve_all_their_keys_from_the_start(gpu):
    blocks = gpu.blocks([b"a", b"b"], [1, 2])
    assert list(blocks.lookup([b"a", b"b", b"c"])) == [True, True, False]


def test_a_closed_tier_closes_twice_and_its_blocks_fail_every_key(gpu):
    blocks = gpu.blocks([b"a"], [0])
    gpu.close_now()
    gpu.close_now()
    outcome = asyncio.run(blocks.load([b"a"], aligned_buffers(1, gpu.part_bytes)))
    assert outcome.failed == {b"a": Failure.CLOSED}


@pytest.mark.parametrize(
    ("keys", "ids", "message"),
    [
        ([b"a"], [32], "block 32 is not on the device"),
        ([b"a"], [-1], "block -1 is not on the device"),
        ([b"a"], [0, 1], "1 keys need 1 block ids"),
        ([b"a", b"b"], [0], "2 keys need 2 block ids"),
        ([b"a"], [1.0], "block ids must be whole numbers, not float"),
        ([b"a", b"b"], [1, 2.5], "block ids must be whole numbers, not float"),
        ([b"a"], [True], "block ids must be whole numbers, not bool"),
        ([b"a", b"b"], [0, False], "block ids must be whole numbers, not bool"),
        ([b"a"], np.array([1.0]), "block ids must be whole numbers, not float64"),
        ([b"a"], np.array([True]), "block ids must be whole numbers, not bool"),
        ([b"a"], ["1"], "block ids must be whole numbers, not str"),
        ([b"a"], [None], "block ids must be whole numbers, not NoneType"),
        ([b"a"], [1 << 70], "block ids must be blocks on the device"),
    ],
)
def test_wrong_blocks_are_refused_on_the_callers_thread(gpu, keys, ids, message):
    with pytest.raises(ValueError, match=message):
        gpu.blocks(keys, ids)


@pytest.mark.parametrize("ids", [[3, 4], range(3, 5), (3, np.int32(4)), np.array([3, 4], np.uint64)])
async def test_block_ids_are_any_whole_numbers(gpu, ids):
    buffers = aligned_buffers(2, gpu.part_bytes)
    assert (await gpu.blocks([b"a", b"b"], ids).load([b"a", b"b"], buffers)).succeeded == (b"a", b"b")
    rows = caches(4096, 4096)
    assert [bytes(buffer) for buffer in buffers] == [
        bytes(rows[0][i].numpy()) + bytes(rows[1][i].numpy()) for i in (3, 4)
    ]


def test_a_block_that_is_to_be_written_is_named_once(gpu):
    with pytest.raises(ValueError, match="block 7 is listed twice"):
        gpu.blocks([b"a", b"b", b"c"], [7, 2, 7], distinct=True)
    gpu.blocks([b"a", b"b", b"c"], [7, 2, 7])  # read as often as one likes


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "no KV tensors"),
        ([torch.zeros(4)], r"tensor 0 has shape \(4,\)"),
        ([torch.zeros(0, 4)], "no empty axis"),
        ([torch.zeros(4, 4, 4).transpose(1, 2)], "tensor 0: a block .* is not contiguous"),
        ([torch.zeros(4, 4), torch.zeros(4, 4, device="meta")], "tensor 1 is on meta"),
        ([torch.zeros(4, 4, device="meta")], "not on meta"),
        ([torch.zeros(8).as_strided((4, 4), (1, 1))], "blocks overlap"),
    ],
)
def test_tensors_that_cannot_be_used_are_refused_by_name(tensors, message):
    with pytest.raises(ValueError, match=message):
        GpuTier.of_tensors(tensors)


def test_a_page_larger_than_its_row_is_refused():
    with pytest.raises(ValueError, match="a page of 65 bytes does not fit a row of 64"):
        GpuTier.of_tensors(caches(64), groups=[[(0, 65)]])
