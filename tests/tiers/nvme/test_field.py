"""Drives, file systems and shared memory in trouble: lookups go on, and nothing ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import damage
import pytest
from loop_rig import mortal_drive
from mounts import in_memory, on_loop, run
from nvme_rig import KIB, MIB, filled, keys_of, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.base import Failure, RemoveReason
from kvtier.tiers.breaker import BAD_CALLS_MAX, Breaker, BreakerState
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.store import opening
from kvtier.tiers.nvme.store.checkpoint import write_checkpoint
from kvtier.tiers.nvme.store.chores import Chores
from kvtier.tiers.nvme.tier import NvmeTier

CAPACITY_BYTES = 16 * MIB
FREEZE_S = 2.0
STALL_MAX_S = FREEZE_S / 4  # of any thread; without a drive in the way it is milliseconds
LOOKUPS = 100
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)  # of the kernel's fs/ext4/ext4.h


@contextmanager
def frozen(point: Path) -> Iterator[None]:
    run("fsfreeze", "-f", point)
    try:
        yield
    finally:
        run("fsfreeze", "-u", point)


def longest_stall_s(tier: NvmeTier, seconds: float) -> float:
    """Look up and ask for stats, again and again; the longest that one round took."""
    longest_s, end_s = 0.0, time.monotonic() + seconds
    while (start_s := time.monotonic()) < end_s:
        tier.lookup(keys_of(0, 8))
        tier.stats()
        longest_s = max(longest_s, time.monotonic() - start_s)
    return longest_s


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_lookups_and_stats_go_on_while_the_file_system_is_frozen(tmp_path: Path, kind: str) -> None:
    with on_loop(tmp_path, kind, 400 * MIB) as (point, _):
        tier = await opened(point / "store", capacity_bytes=CAPACITY_BYTES)
        await stored(tier, keys_of(0, 8))
        os.sync()  # pages of the index that are clean would fault when they are written
        with frozen(point):
            storing = asyncio.create_task(tier.store(keys_of(100, 8), filled(keys_of(100, 8))))
            await asyncio.sleep(0)
            stall_s = await asyncio.to_thread(longest_stall_s, tier, FREEZE_S)
        assert stall_s < STALL_MAX_S
        await storing
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        await tier.close()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
async def test_a_drive_that_dies_ends_no_process(tmp_path: Path, kind: str) -> None:
    with mortal_drive(kind, tmp_path, 200 * MIB) as made:
        with StoreProcess(made.point / "store") as server:
            assert server.ask("store 0 64") == "64"
            os.sync()
            made.cut()
            assert server.ask("look 0 64") == "64"
            assert server.ask("store 1000 64") == "0"
            assert server.ask("look 0 64") == "64"
            server.tell("close")
            assert server.end() >= 0


@pytest.mark.root
@pytest.mark.parametrize("free_kib", [0, 4, 12, 28, 50, 120, 400])
@pytest.mark.parametrize("is_there", [False, True])
async def test_a_nearly_full_file_system_ends_no_process(
    tmp_path: Path, free_kib: int, is_there: bool
) -> None:
    with on_loop(tmp_path, "ext4", 60 * MIB) as (point, _):
        if is_there:
            with StoreProcess(point / "store") as server:
                assert server.ask("store 0 64") == "64"
                assert server.ask("close") == "closed"
        fill(point, free_kib * KIB)
        with StoreProcess(point / "store") as server:
            if server.greeting == "open":
                server.ask("store 100 64")
                assert int(server.ask("look 0 64")) <= 64  # some may have had to go
                assert server.ask("close") == "closed"
            else:
                assert server.greeting.startswith("TierUnavailable"), server.greeting
                assert "No space left" in server.greeting
            assert server.end() == 0


def fill(point: Path, free_bytes: int) -> None:
    """Leave so much room on the file system, and no more."""
    state = os.statvfs(point)
    with (point / "fill").open("wb") as file:
        size_bytes = max(1, state.f_bavail * state.f_frsize - free_bytes)
        with contextlib.suppress(OSError):  # the file system needs a little itself: then nothing is left
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            os.fsync(file.fileno())
            return
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4 * KIB))
                file.flush()


@pytest.mark.root
@pytest.mark.slow
async def test_a_btrfs_that_others_fill_ends_no_process(tmp_path: Path) -> None:
    with on_loop(tmp_path, "btrfs", 300 * MIB) as (point, _):
        with StoreProcess(point / "store") as server:
            assert server.ask("store 0 64") == "64"
            for number in range(20):
                with (point / f"fill-{number}").open("wb") as file:
                    try:
                        file.write(bytes(16 * MIB))
                        os.fsync(file.fileno())
                    except OSError:
                        break
                server.ask(f"store {1000 + 64 * number} 64")
            for number in range(8):
                server.ask(f"store {5000 + 64 * number} 64")
                server.ask("look 0 64")
            assert server.ask("close") == "closed"
            assert server.end() == 0


@pytest.mark.root
async def test_shared_memory_that_is_too_small_is_refused_by_size_before_anything_is_made(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    with in_memory(tmp_path / "shm", 256 * KIB) as place:
        with pytest.raises(
            TierUnavailable, match=r"too small.*may take \d+ bytes, .*/shm has \d+ free.*--shm-size"
        ):
            await opened(path, memory=place)
        assert list(place.iterdir()) == []
    assert not path.exists()


async def test_a_machine_without_shared_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TierUnavailable, match=r"there is no shared memory at .*missing"):
        await opened(tmp_path / "store", memory=tmp_path / "missing")


@pytest.mark.root
async def test_shared_memory_that_others_fill_fails_stores_and_nothing_else(tmp_path: Path) -> None:
    with in_memory(tmp_path / "shm", 24 * MIB) as place:
        tier = await opened(tmp_path / "store", capacity_bytes=64 * MIB, chunk_bytes=KIB, memory=place)
        await stored(tier, keys_of(0, 64), KIB)
        fill(place, 0)
        failed = 0
        for first in range(1000, 15_000, 500):
            outcome = await tier.store(keys_of(first, 500), filled(keys_of(first, 500), KIB))
            failed += len(outcome.failed)
            assert set(outcome.failed.values()) <= {Failure.NO_SPACE}
        assert not tier._index.damaged
        assert tier.lookup(keys_of(14_000, 1))
        (place / "fill").unlink()
        await stored(tier, keys_of(20_000, 500), KIB)
        assert len(await right(tier, keys_of(20_000, 500), KIB)) == 500
        await tier.close()
        assert [one.name for one in place.iterdir()] == []


async def test_a_cold_lookup_waits_for_no_drive(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=64 * MIB, chunk_bytes=4 * KIB)
    for first in range(0, 8000, 1000):
        await stored(tier, keys_of(first, 1000), 4 * KIB)
    await tier.close()
    tier = await opened(path, capacity_bytes=64 * MIB, chunk_bytes=4 * KIB)
    faults: list[int] = []

    def look() -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        for number in range(0, 8000, 8000 // LOOKUPS):
            assert tier.lookup(keys_of(number, 1)) == [True]
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert faults == [0]
    await tier.close()


async def test_a_checkpoint_is_within_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=8 * MIB, chunk_bytes=4 * KIB)
    for first in range(0, 4000, 100):
        await tier.store(keys_of(first, 100), filled(keys_of(first, 100), 4 * KIB))
    await tier._keeper._lanes.upkeep(lambda: write(tier))
    assert (path / "checkpoint").exists()
    assert allocated_bytes(path) <= 8 * MIB
    await tier.close()
    assert allocated_bytes(path) <= 8 * MIB


def write(tier: NvmeTier) -> None:
    assert write_checkpoint(tier._store.directory, tier._index)


async def test_a_reboot_costs_what_came_since_the_checkpoint(tmp_path: Path) -> None:
    """Planned or not: shared memory is gone, files are whole."""
    path = tmp_path / "store"
    with StoreProcess(path) as server:
        assert server.ask("store 0 64") == "64"
        assert server.ask("close") == "closed"
    with StoreProcess(path) as server:
        assert server.ask("store 100 300") == "300"
    damage.lose_memory(path)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    keys = keys_of(0, 64) + keys_of(100, 300)
    assert await right(tier, keys) == keys
    with tier._index.read() as txn:
        assert txn.newest_unread() is None
    await tier.close()


async def test_a_tier_that_is_asked_while_it_catches_up_finds_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    for first in range(0, 600, 50):
        await stored(tier, keys_of(first, 50))
    await tier.close()
    damage.lose_index(path)
    monkeypatch.setattr(opening, "CATCH_UP_MAX", 60)
    round_, held = Chores.round, threading.Event()
    monkeypatch.setattr(Chores, "round", lambda self: held.is_set() and round_(self))
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    found = [number for number in range(600) if tier.lookup(keys_of(number, 1)) == [True]]
    assert found, "it serves"
    assert len(found) < 600
    assert min(found) > 300, "the newest first"
    await tier.remove(keys_of(0, 10), RemoveReason.REQUESTED)  # not found yet, and never again
    await stored(tier, keys_of(20, 5))  # stored anew: what the log has is older
    assert await right(tier, keys_of(20, 5)) == keys_of(20, 5)
    held.set()
    await tier._keeper.caught_up()
    assert await right(tier, keys_of(0, 600)) == keys_of(10, 590)
    assert tier.stats().chunks == 590
    await tier.close()
    damage.lose_index(path)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await tier._keeper.caught_up()
    assert await right(tier, keys_of(0, 600)) == keys_of(10, 590)
    await tier.close()


@pytest.mark.root
async def test_a_file_system_that_shuts_down_is_not_taken_for_a_full_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with on_loop(tmp_path, "ext4", 200 * MIB) as (point, _):
        tier = Breaker(await opened(point / "store", capacity_bytes=CAPACITY_BYTES), slow_s=10)
        await tier.store(keys_of(0, 64), filled(keys_of(0, 64)))
        shut_down(point)
        why: set[Failure] = set()
        for start in range(1000, 1000 + 64 * 2 * BAD_CALLS_MAX, 64):
            why |= set((await tier.store(keys_of(start, 64), filled(keys_of(start, 64)))).failed.values())
        assert tier.state is BreakerState.OPEN
        assert Failure.NO_SPACE not in why
        assert not any(tier.lookup(keys_of(0, 64)))
        assert len(caplog.records) <= 4, "one line a period and path, and one of the breaker"
        await tier.close()


def shut_down(point: Path) -> None:
    """Have every call on the file system fail with EIO from now on, as after a write that went wrong."""
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
    finally:
        os.close(fd)
