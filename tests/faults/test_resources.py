"""Processes that run out of descriptors, threads or memory"""

from __future__ import annotations

import mmap
import os
import resource
import threading
from pathlib import Path

import pytest
from faults import fault, in_child
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored
from reader_slots import all_held, few_slots
from store_process import StoreProcess

from kvtier.tiers.base import Failure
from kvtier.tiers.breaker import BAD_CALLS_MAX, Breaker, BreakerState
from kvtier.tiers.nvme.io import blocks
from kvtier.tiers.testing import aligned_buffers

OLD, NEW = keys_of(0, 200), keys_of(1000, 40)


@fault(
    "no descriptors are left (RLIMIT_NOFILE)",
    sees="stores and loads fail, nothing is raised",
    loses="the chunks of failed stores; nothing that is stored",
    heals="by itself, once there are some",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_descriptors(tmp_path: Path) -> None:
    async def serve() -> None:
        path = tmp_path / "store"
        tier = await opened(path, capacity_bytes=8 * MIB)
        await stored(tier, OLD)
        await tier.close()
        tier = await opened(path, capacity_bytes=8 * MIB)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        await tier.load(OLD, aligned_buffers(len(OLD), CHUNK_BYTES))
        await tier.store(NEW, filled(NEW))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await right(tier, OLD) == OLD
        await tier.close()

    assert in_child(serve) == 0


@fault(
    "a file may not grow (RLIMIT_FSIZE)",
    sees="stores fail, nothing is raised",
    loses="the chunks of failed stores",
    heals="with a higher limit",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_may_not_grow(tmp_path: Path) -> None:
    async def serve() -> None:
        tier = await opened(tmp_path / "store", capacity_bytes=64 * MIB)
        await stored(tier, OLD[:8])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        for first in range(2000, 2400, 40):
            await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert await right(tier, OLD[:8]) == OLD[:8]
        await stored(tier, NEW)
        await tier.close()

    assert in_child(serve) == 0


@fault(
    "no thread can be started (pids.max, RLIMIT_NPROC)",
    sees="nothing once the tier is open: all its threads are started with it",
    loses="nothing",
    heals="-",
)
async def test_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tier = await opened(tmp_path / "store")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            await stored(tier, OLD)
            assert await right(tier, OLD) == OLD
    finally:
        await tier.close()


@fault(
    "no memory is to be had for a transfer (ENOMEM, vm.max_map_count)",
    sees="its keys fail, nothing is raised",
    loses="the chunks of failed stores; nothing that is stored",
    heals="by itself, once there is some",
)
async def test_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    tier = await opened(tmp_path / "store")
    try:
        await stored(tier, OLD)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "scratch", refuse)
            patch.setattr("kvtier.tiers.nvme.io.pieces.scratch", refuse)
            await tier.store(NEW, filled(NEW, 5000))
            await tier.load(OLD, aligned_buffers(len(OLD), CHUNK_BYTES))
        assert await right(tier, OLD) == OLD
    finally:
        await tier.close()


@fault(
    "every reader slot of the index is taken (512 reads at the same moment)",
    sees="lookups miss, loads and stores fail as no_resources; the breaker stays closed",
    loses="the chunks of failed stores; nothing that is stored",
    heals="by itself, when a read ends; slots of killed processes are freed first",
)
async def test_no_reader_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_slots(monkeypatch, 20)
    tier = await opened(tmp_path / "store")
    breaker = Breaker(tier, slow_s=60.0)
    try:
        await stored(tier, OLD)
        with all_held(tier._index):
            for _ in range(2 * BAD_CALLS_MAX):
                assert not any(breaker.lookup(OLD))
                outcome = await breaker.load(OLD, aligned_buffers(len(OLD), CHUNK_BYTES))
                assert outcome.failed == dict.fromkeys(OLD, Failure.NO_RESOURCES)
                outcome = await breaker.store(NEW, filled(NEW))
                assert outcome.failed == dict.fromkeys(NEW, Failure.NO_RESOURCES)
        assert breaker.state is BreakerState.CLOSED
        assert await right(tier, OLD) == OLD
        await stored(tier, NEW)
    finally:
        await tier.close()


@fault(
    "no descriptors are left when a server starts",
    sees="`TierUnavailable` that names what could not be opened",
    loses="nothing; the index is not taken to be damaged",
    heals="with a higher limit (RLIMIT_NOFILE)",
)
async def test_no_descriptors_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=8 * MIB)
    await stored(tier, OLD)
    await tier.close()
    for limit in (8, 10, 12, 14):
        with StoreProcess(path, within=("prlimit", f"--nofile={limit}:{limit}")) as server:
            assert "damaged" not in server.greeting
    tier = await opened(path, capacity_bytes=8 * MIB)
    assert await right(tier, OLD) == OLD
    await tier.close()
