"""What can be shown of the CUDA module without a device: the calls that it makes, and their layout."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, FakeDriver

from kvtier.tiers.device.copies import Lane
from kvtier.tiers.device.copyplan import CopyPlan
from kvtier.tiers.device.cuda import BATCH_SINCE, BatchedMemcpy, CudaCopies, MemcpyPerRun, _Attributes

STREAM = 0x5A5A


def memory(*chunks):
    arrays = [np.frombuffer(bytearray(chunk), np.uint8) for chunk in chunks]
    return arrays, np.array([array.ctypes.data for array in arrays], np.int64)


def test_the_attributes_have_the_layout_of_the_driver_header():
    # enum, {enum, int}, {enum, int}, unsigned: all four bytes wide, so 24 bytes without padding.
    assert ctypes.sizeof(_Attributes) == 24
    offsets = [getattr(_Attributes, name).offset for name, _ in _Attributes._fields_]
    assert offsets == [0, 4, 12, 20]


def batch_driver(result=0, failed_at=0):
    """cuMemcpyBatchAsync as the driver reads its arguments, with host memory for a device."""
    calls = []

    def function(targets, sources, sizes, count, attributes, first, attribute_count, fail_index, stream):
        columns = [(ctypes.c_int64 * count).from_address(column) for column in (targets, sources, sizes)]
        given = _Attributes.from_address(attributes)
        calls.append(
            {
                "count": count,
                "stream": stream,
                "order": given.src_access_order,
                "attributes": [ctypes.c_size_t.from_address(first).value, attribute_count],
            }
        )
        if result:
            ctypes.c_size_t.from_address(fail_index).value = failed_at
            return result
        for target, source, size in zip(*columns, strict=True):
            ctypes.memmove(target, source, size)
        return 0

    return BatchedMemcpy(BatchedMemcpy.PROTOTYPE(function)), calls


def test_a_whole_plan_is_one_call_of_the_driver():
    batched, calls = batch_driver()
    sources, source_addresses = memory(b"abcd", b"efgh", b"ijkl")
    targets, target_addresses = memory(b"....", b"....", b"....")
    batched(target_addresses, source_addresses, np.array([4, 2, 3]), STREAM)
    assert [bytes(target) for target in targets] == [b"abcd", b"ef..", b"ijk."]
    assert calls == [{"count": 3, "stream": STREAM, "order": 1, "attributes": [0, 1]}]
    assert len(sources) == 3


def test_an_error_of_the_driver_says_which_run():
    batched, _ = batch_driver(result=700, failed_at=2)
    _, addresses = memory(b"abcd", b"efgh", b"ijkl")
    with pytest.raises(RuntimeError, match=r"CUDA error 700 at run 2"):
        batched(addresses, addresses, np.array([4, 4, 4]), STREAM)


def test_an_error_that_is_of_no_run_names_none():
    batched, _ = batch_driver(result=1, failed_at=2**64 - 1)
    _, addresses = memory(b"abcd")
    with pytest.raises(RuntimeError, match=r"CUDA error 1 of the whole batch$"):
        batched(addresses, addresses, np.array([4]), STREAM)


def test_without_the_batched_call_each_run_is_one_memcpy():
    calls = []

    def memcpy(target, source, size, kind, stream):
        calls.append((kind, stream))
        ctypes.memmove(target, source, size)
        return 0

    _sources, source_addresses = memory(b"abcd", b"efgh")
    targets, target_addresses = memory(b"....", b"....")
    MemcpyPerRun(memcpy, 4)(target_addresses, source_addresses, np.array([4, 1]), STREAM)
    assert [bytes(target) for target in targets] == [b"abcd", b"e..."]
    assert calls == [(4, STREAM)] * 2


def test_a_failing_run_is_named():
    results = iter([0, 1])
    with pytest.raises(RuntimeError, match="error 1 at run 1"):
        MemcpyPerRun(lambda *_: next(results))(np.array([1, 2]), np.array([1, 2]), np.array([1, 2]), STREAM)


# CudaCopies on a device that is not there.


@pytest.fixture
def cuda(monkeypatch):
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    return cuda


@pytest.fixture
def driver(cuda, monkeypatch):
    driver = FakeDriver(cuda)
    driver.install(monkeypatch)
    return driver


@pytest.fixture
def copies(driver):
    return CudaCopies(DEVICE)


class Memory:
    """Rows on the device and in a slot, and the plan that copies one to the other a byte a run."""

    kept: ClassVar[list[Memory]] = []  # copies under way outlive what a test has names for

    def __init__(self, device=b"kvkv", host=b"...."):
        (self.device, self.host), (device_address, host_address) = memory(device, host)
        self.kept.append(self)
        steps = np.arange(len(device))
        self.plan = CopyPlan(
            device_address + steps, host_address + steps, np.ones(len(device), np.int64), len(device)
        )


def submitted(copies, lane=Lane.STORE, memory=None):
    return copies.submit((memory or Memory()).plan, lane, copies.mark())


def test_a_copy_is_marked_on_the_compute_stream_awaited_on_its_own_and_timed(cuda, copies):
    submitted(copies)
    assert cuda.calls == [
        ("record", "compute", "event 0"),
        ("device", "cuda:0"),
        ("wait_event", "stream 1", "event 0"),
        ("record", "stream 1", "event 1"),
        ("batch", "stream 1", "4"),
        ("record", "stream 1", "event 2"),
    ]


@pytest.mark.parametrize("lane", list(Lane))
def test_a_copy_waits_for_the_compute_stream_and_goes_the_right_way(cuda, copies, lane):
    memory = Memory(b"kvkv", b"slot")
    cuda.compute.put(lambda: None)
    job = submitted(copies, lane, memory)
    stream = cuda.streams[1 + list(Lane).index(lane)]
    assert not stream.step()
    assert not job.done()
    cuda.drain()
    assert job.done()
    assert (job.error, job.seconds, job.size_bytes) == (None, 0.0025, 4)
    expected = b"kvkv" if lane is Lane.STORE else b"slot"
    assert (bytes(memory.device), bytes(memory.host)) == (expected, expected)


def test_a_mark_is_what_the_stream_had_been_told_to_do_then(cuda, copies):
    mark = copies.mark()
    cuda.compute.put(lambda: None)
    job = copies.submit(Memory().plan, Lane.STORE, mark)
    while cuda.streams[1].step():
        pass
    assert job.done()
    assert cuda.compute.entries


def test_stores_give_way_and_each_lane_has_a_stream(cuda, copies):
    assert [(stream.name, stream.priority) for stream in cuda.streams] == [
        ("compute", 0),
        ("stream 1", 0),
        ("stream 2", -1),
        ("stream 3", -1),
    ]
    for lane in Lane:
        submitted(copies, lane)
    batches = [call for call in cuda.calls if call[0] == "batch"]
    assert batches == [("batch", "stream 1", "4"), ("batch", "stream 2", "4"), ("batch", "stream 3", "4")]


def recorded(cuda, since=0):
    return [call[2] for call in cuda.calls[since:] if call[0] == "record" and call[1] != "compute"]


def test_events_are_used_again_once_their_job_is_done_and_no_sooner(cuda, copies):
    first, second = submitted(copies), submitted(copies)
    under_way = set(recorded(cuda))
    assert len(under_way) == 4
    before = len(cuda.calls)
    assert not first.done()
    third = submitted(copies)
    assert under_way.isdisjoint(recorded(cuda, before))
    cuda.drain()  # all have ended; nobody has asked yet
    before = len(cuda.calls)
    submitted(copies)
    assert under_way.isdisjoint(recorded(cuda, before))
    assert all(job.done() for job in (first, second, third))
    before = len(cuda.calls)
    submitted(copies)
    submitted(copies)
    assert set(recorded(cuda, before)) <= {f"event {n}" for n in range(len(cuda.events))} - {"event 0"}
    assert len(set(recorded(cuda, before))) == 4
    made = len(cuda.events)
    submitted(copies)
    assert len(cuda.events) == made + 1  # the mark's own


def test_the_plans_arrays_live_until_the_copy_is_done(cuda, copies):
    memory = Memory()
    arrays = [weakref.ref(array) for array in (memory.plan.device, memory.plan.host, memory.plan.sizes)]
    job = submitted(copies, memory=memory)
    del memory.plan
    gc.collect()
    assert all(array() is not None for array in arrays)
    cuda.drain()
    assert job.done()
    gc.collect()
    assert all(array() is None for array in arrays)


def test_asking_for_a_job_blocks_nobody(cuda, copies):
    job = submitted(copies)
    assert not job.wait(0)
    cuda.drain()
    assert job.wait(None)
    asyncio.run(job.ended())
    assert not [call for call in cuda.calls if call[0] == "synchronize"]


async def test_the_end_of_a_copy_is_polled(cuda, copies):
    job = submitted(copies)
    ended = asyncio.ensure_future(job.ended())
    await asyncio.sleep(0)
    assert not ended.done()
    cuda.drain()
    await ended


def test_no_bytes_are_no_call_of_the_driver(cuda, copies):
    nothing = np.empty(0, np.int64)
    job = copies.submit(CopyPlan(nothing, nothing, nothing, 0), Lane.STORE, copies.mark())
    cuda.drain()
    assert job.done()
    assert job.error is None
    assert not [call for call in cuda.calls if call[0] == "batch"]


# Which call of the driver does the copying.


def test_the_batched_call_is_asked_for_by_the_version_whose_signature_we_use(driver, copies):
    assert driver.asked == [(b"cuMemcpyBatchAsync", BATCH_SINCE)]
    assert isinstance(copies._batch, BatchedMemcpy)


def test_without_the_batched_call_the_driver_copies_run_by_run(cuda, driver):
    driver.batched = False
    memory = Memory()
    job = submitted(CudaCopies(DEVICE), memory=memory)
    assert [call for call in cuda.calls if call[0] == "copy"] == [("copy", "stream 1", "1")] * 4
    cuda.drain()
    assert job.done()
    assert bytes(memory.host) == b"kvkv"


def test_a_driver_that_is_older_or_not_there_has_no_batched_call(driver, monkeypatch):
    monkeypatch.setattr(driver, "cuGetProcAddress_v2", lambda *_: 1)  # CUDA_ERROR_INVALID_VALUE
    assert BatchedMemcpy.find() is None
    monkeypatch.delattr(FakeDriver, "cuGetProcAddress_v2")
    monkeypatch.delattr(driver, "cuGetProcAddress_v2")
    assert BatchedMemcpy.find() is None


def test_rocm_copies_run_by_run_with_its_own_call(cuda, driver, monkeypatch):
    calls = []

    def memcpy(target, source, size, kind, stream):
        calls.append((size, kind, stream))
        return 0

    hip = SimpleNamespace(hipMemcpyAsync=memcpy)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(ctypes, "CDLL", {"libamdhip64.so": hip}.__getitem__)
    submitted(CudaCopies(DEVICE))
    assert calls == [(1, 4, cuda.streams[1].cuda_stream)] * 4
    assert not driver.asked


# Errors of the device.


@pytest.mark.parametrize(
    ("call", "copied"),
    [
        (("record", "compute"), False),
        (("device",), False),
        (("wait_event",), False),
        (("record", "stream 1", "event 4"), False),  # the start
        (("record", "stream 1", "event 5"), True),  # the end
    ],
)
def test_a_call_that_fails_is_a_failed_job_in_its_place(cuda, copies, call, copied):
    first = submitted(copies)
    cuda.fail(*call, message="out of memory")
    memory = Memory()
    bad = submitted(copies, memory=memory)
    cuda.heal()
    assert not bad.done()
    assert not first.done()
    cuda.drain()
    assert bad.done()
    assert first.done()
    assert bad.error == "RuntimeError: out of memory"
    assert (first.error, bad.seconds) == (None, 0)
    assert bytes(memory.host) == (b"kvkv" if copied else b"....")
    later = [submitted(copies), submitted(copies)]
    cuda.drain()
    assert all(job.done() and job.error is None for job in later)


@pytest.mark.parametrize("batched", [True, False])
def test_a_copy_that_fails_half_way_is_done_once_what_did_start_has_ended(cuda, driver, batched):
    driver.batched = batched
    driver.fails_at = 2
    memory = Memory()
    job = submitted(CudaCopies(DEVICE), memory=memory)
    assert job.error is not None
    assert "error 1 at run 2" in job.error
    for _ in range(2):
        assert not job.done()
        cuda.run()
    assert job.done()
    assert bytes(memory.host) == b"kv.."
    assert not cuda.streams[1].entries


@pytest.mark.parametrize("call", ["query", "elapsed_time"])
def test_a_device_that_is_lost_under_a_copy_ends_it_with_the_reason(cuda, copies, call):
    job = submitted(copies)
    cuda.drain()
    cuda.fail(call, message="an illegal memory access was encountered")
    assert job.wait(0)
    assert job.error == "RuntimeError: an illegal memory access was encountered"
    before = len(cuda.events)
    cuda.heal()
    submitted(copies)
    assert len(cuda.events) == before + 3  # none of a lost device's events is used again


def test_the_first_error_of_a_job_is_its_reason(cuda, driver, copies):
    driver.fails_at = 0
    job = submitted(copies)
    cuda.fail("query", message="lost")
    assert job.done()
    assert job.error is not None
    assert "at run 0" in job.error


def test_closing_waits_for_every_stream_once(cuda, copies):
    job = submitted(copies)
    copies.close()
    copies.close()
    assert job.done()
    assert [call[1] for call in cuda.calls if call[0] == "synchronize"] == [
        "stream 1",
        "stream 2",
        "stream 3",
    ]


def test_a_lost_device_can_be_closed(cuda, copies):
    cuda.fail("synchronize", message="lost")
    copies.close()
