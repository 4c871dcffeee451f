"""The rules of order in `tiers/device/gpu.py`, one by one, and what becomes of a tier that breaks them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest
from gpu_saboteurs import Deaf, Disorderly, Forgetful, Hasty, Heedless, Stale
from ordering_rig import Rig, Stepped, stepped_cuda, stepped_threads
from race_detector import RaceDetector

from kvtier.tiers.base import Failure
from kvtier.tiers.device import gpu as gpu_module
from kvtier.tiers.device.copies import CopyJob, Lane
from kvtier.tiers.device.gpu import GpuTier

Make = Callable[[RaceDetector], Stepped]
BOTH = [stepped_threads, stepped_cuda]


@pytest.fixture(params=BOTH)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.close()
    rig.detector.check()


@pytest.fixture
def broken() -> Iterator[Callable[..., Rig]]:
    """Rigs whose races are the point of the test."""
    rigs: list[Rig] = []

    def make(copies: Make, tier: type[GpuTier] = GpuTier) -> Rig:
        rigs.append(Rig(copies, tier))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def finish(rig: Rig, lane: Lane, job: CopyJob) -> None:
    """Run a lane until the job is done, and no further."""
    for _ in range(20):
        if not job.done():
            rig.copies.step(lane)
    assert job.done()


# Rule 1: a store sees the writes before it.


def scenario_store_after_write(rig: Rig) -> None:
    rig.write(0, 7)
    store = rig.store([0], [0])
    for _ in range(10):
        rig.copies.step(Lane.STORE)  # as far as the copy can get while the kernel has not run
    rig.copies.free()
    assert store.wait(10)


def test_a_store_sees_the_writes_of_the_kernels_before_it(rig):
    scenario_store_after_write(rig)
    assert rig.slot(0) == 7


def test_a_store_is_not_kept_waiting_by_later_kernels(rig):
    store = rig.store([0], [0])
    rig.write(1, 7)
    finish(rig, Lane.STORE, store)


def test_device_blocks_see_the_writes_before_they_were_made_and_wait_for_no_others(rig):
    rig.write(0, 7)
    blocks = rig.gpu.blocks([b"a"], [0])
    rig.write(1, 8)

    async def load():
        task = asyncio.ensure_future(blocks.load([b"a"], [rig.slots[0]]))
        await asyncio.sleep(0)
        rig.copies.run_kernel()
        for _ in range(10):
            rig.copies.step(Lane.STORE)
        return await task

    assert asyncio.run(load()).succeeded == (b"a",)
    assert rig.slot(0) == 7


# Rule 2: no earlier kernel writes or reads a load's blocks after it.


def scenario_load_after_kernels(rig: Rig) -> None:
    rig.fill(0, 9)
    rig.read(0)
    rig.write(0, 7)
    load = rig.load([0], [0])
    for _ in range(10):
        rig.copies.step(Lane.LOAD)
    rig.copies.free()
    assert load.wait(10)
    rig.read(0)
    rig.copies.free()


def test_a_load_writes_its_blocks_after_the_kernels_before_it(rig):
    scenario_load_after_kernels(rig)
    assert rig.seen == [(0, 255), (0, 9)]


# Rule 3: a slot is not reused before its readers and its writer are done.


def test_a_half_copied_slot_is_under_way_and_a_whole_one_is_not(rig):
    rig.write(0, 7)
    rig.copies.run_kernel()
    store = rig.store([0], [0])
    rig.copies.step(Lane.STORE)
    assert not store.done()
    rig.copies.free()
    assert store.wait(10)
    rig.fill(0, 1)


def scenario_reuse_after_failure(rig: Rig, lane: Lane = Lane.STORE) -> None:
    """A transfer of four runs fails at the third; its slots are used anew as soon as it is done."""
    rig.copies.fails_at = 2
    job = (rig.store if lane is Lane.STORE else rig.load)([0, 2], [0, 2])
    finish(rig, lane, job)
    assert job.error is not None
    rig.fill(0, 1)
    rig.fill(2, 2)
    rig.copies.free()
    assert (rig.slot(0), rig.slot(2)) == (1, 2)


@pytest.mark.parametrize("lane", [Lane.STORE, Lane.LOAD])
def test_a_transfer_that_fails_half_way_touches_nothing_once_it_is_done(rig, lane):
    scenario_reuse_after_failure(rig, lane)


def scenario_cancel(rig: Rig) -> None:
    """A blocks's load is cancelled half way; its slot is used anew as soon as that returns."""
    blocks = rig.gpu.blocks([b"a"], [0])

    async def cancel():
        task = asyncio.ensure_future(blocks.load([b"a"], [rig.slots[0]]))
        await asyncio.sleep(0)
        rig.copies.step(Lane.STORE)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        if not task.done():
            rig.copies.free()
        with pytest.raises(asyncio.CancelledError):
            await task
        rig.fill(0, 1)

    asyncio.run(cancel())
    rig.copies.free()


def test_a_cancelled_transfer_returns_once_nothing_touches_its_slot(rig):
    scenario_cancel(rig)
    assert rig.slot(0) == 1


def test_closing_waits_for_what_is_under_way(rig):
    store = rig.store([0], [0])
    rig.copies.step(Lane.STORE)
    rig.close()
    assert store.done()
    rig.fill(0, 1)


def test_a_closed_tier_refuses_a_transfer_without_an_exception(rig):
    rig.close()
    job = rig.store([0], [0])
    assert job.done()
    assert job.wait(0)
    assert job.error == "the gpu tier is closed"
    assert (job.seconds, job.size_bytes) == (0, 32)
    asyncio.run(job.ended())
    assert rig.slot(0) == 255


# Rule 4: jobs of a lane complete in order, and no lane waits for another.


def scenario_order(rig: Rig) -> None:
    """Two stores of one lane write the same slot, and a third one another slot."""
    for block in range(3):
        rig.write(block, 10 + block)
    rig.copies.run_kernel()
    first, second = rig.store([0], [0]), rig.store([1], [0])
    third = rig.store([2], [1])
    rig.copies.free()
    assert first.wait(10)
    assert second.wait(10)
    assert third.wait(10)


def test_jobs_of_a_lane_complete_in_the_order_of_submission(rig):
    scenario_order(rig)
    assert rig.slot(0) == 11


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_failed_job_keeps_its_place_in_the_order(rig, fails_at):
    first = rig.store([0], [0])
    rig.copies.fails_at = fails_at
    second = rig.store([1], [1])
    third = rig.store([2], [2])
    assert not second.done()
    finish(rig, Lane.STORE, second)
    assert first.done()
    assert not third.done()
    rig.copies.free()
    assert third.wait(10)
    assert (first.error, third.error) == (None, None)
    assert second.error is not None


@pytest.mark.parametrize("stuck", list(Lane))
def test_no_lane_waits_for_another(rig, stuck):
    submit = {
        Lane.STORE: lambda: rig.store([0], [0]),
        Lane.LOAD: lambda: rig.load([1], [1]),
        Lane.EXPEDITED: lambda: rig.load([2], [2], expedited=True),
    }
    jobs = {lane: job() for lane, job in submit.items()}
    for lane in set(Lane) - {stuck}:
        for _ in range(10):
            rig.copies.step(lane)
    assert [lane for lane, job in jobs.items() if not job.done()] == [stuck]


# Rule 5: a device's fault is the job's error.


async def test_a_fault_is_the_error_of_its_job_alone(rig):
    rig.copies.fails_at = 0
    bad, good = rig.store([0], [0]), rig.store([1], [1])
    rig.copies.free()
    await bad.ended()
    await good.ended()
    assert bad.error is not None
    assert bad.error.startswith("RuntimeError: ")
    assert (bad.seconds, good.error) == (0, None)


async def test_a_fault_fails_the_keys_of_device_blocks_and_is_logged_by_nobody(rig, caplog):
    blocks = rig.gpu.blocks([b"a"], [0])
    rig.copies.fails_at = 0
    task = asyncio.ensure_future(blocks.load([b"a"], [rig.slots[0]]))
    await asyncio.sleep(0)
    rig.copies.free()
    assert (await task).failed == {b"a": Failure.IO_ERROR}
    del task
    gc.collect()  # an exception that nobody saw is logged when its future goes
    assert not caplog.records


# Saboteurs: each breaks one rule, and the detector says so.


@pytest.mark.parametrize("copies", [Heedless, Deaf])
def test_a_store_that_does_not_wait_for_kernels_is_caught(broken, copies):
    rig = broken(copies)
    scenario_store_after_write(rig)
    assert "store 1 begins before the end of kernel 1" in rig.detector.races


@pytest.mark.parametrize("copies", [Heedless, Deaf])
def test_a_load_that_does_not_wait_for_kernels_is_caught(broken, copies):
    rig = broken(copies)
    scenario_load_after_kernels(rig)
    assert "load 1 begins before the end of kernel 2" in rig.detector.races


@pytest.mark.parametrize("copies", BOTH)
def test_a_tier_that_marks_too_early_is_caught(broken, copies):
    rig = broken(copies, Stale)
    scenario_store_after_write(rig)
    assert "store 1 is submitted, in no order with kernel 1" in rig.detector.races


def test_a_job_that_is_done_too_early_is_caught(broken):
    rig = broken(Hasty)
    assert rig.store([0], [0]).done()
    rig.fill(0, 1)
    assert rig.detector.races == ["the host touches what is under way: store 1"]


def test_a_failed_job_that_is_done_too_early_is_caught(broken):
    rig = broken(Forgetful)
    with pytest.raises(AssertionError):  # the slots have been overwritten
        scenario_reuse_after_failure(rig)
    assert "the host touches what is under way: store 1" in rig.detector.races


@pytest.mark.parametrize("copies", BOTH)
def test_a_load_that_returns_when_it_is_cancelled_is_caught(broken, copies, monkeypatch):
    async def unsettled(work):
        await work

    monkeypatch.setattr(gpu_module, "settled", unsettled)
    rig = broken(copies)
    scenario_cancel(rig)
    assert "the host touches what is under way: store 1" in rig.detector.races


def test_jobs_out_of_order_are_caught(broken):
    rig = broken(Disorderly)
    first, second = rig.store([0], [0]), rig.store([1], [1])
    rig.copies.free()
    assert first.wait(10)
    assert second.wait(10)
    assert rig.detector.races == ["store 2 ends before store 1 of the same lane"]


@pytest.mark.parametrize("copies", BOTH)
def test_a_caller_that_does_not_hold_back_is_caught(broken, copies):
    rig = broken(copies)
    rig.store([0], [0])
    rig.write(0, 7)
    assert rig.detector.races == ["kernel 1 is submitted, in no order with store 1"]
    rig.load([0], [0])
    assert rig.detector.races[1:] == ["load 2 is submitted, in no order with store 1"]
    rig.slot(0)
    assert rig.detector.races[2:] == ["the host touches what is under way: store 1"]
