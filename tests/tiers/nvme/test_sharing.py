"""One store, several processes: who may join, who is refused and why, what the dead and the paused leave."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import damage
import pytest
from faults import in_child
from mounts import on_loop
from nvme_rig import MIB, filled, keys_of, names, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.base import Failure
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.survey import usage
from kvtier.tiers.nvme.index import writer
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.budget import Facts
from kvtier.tiers.nvme.store import directory as module
from kvtier.tiers.nvme.store.mark import read_mark
from kvtier.tiers.nvme.store.opening import close_store, open_existing

CAPACITY_BYTES = 16 * MIB
ANOTHER_CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
ANOTHER_MEMORY = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.root
@pytest.mark.parametrize(
    ("within", "reason"),
    [
        (ANOTHER_CONTAINER, "in another PID namespace.*hostPID or shareProcessNamespace"),
        (ANOTHER_MEMORY, "not in the shared memory that is seen from here.*RemoveIPC"),
    ],
    ids=["pids", "memory"],
)
async def test_who_cannot_share_the_index_is_refused_with_the_reason(
    path: Path, within: tuple[str, ...], reason: str
) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    with StoreProcess(path, within=within) as other:
        assert other.greeting.startswith("OutOfReach")
    assert re.search(reason, other.greeting)
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await stored(tier, keys_of(8, 8))
    await tier.close()


@pytest.mark.root
async def test_a_store_that_was_left_in_another_container_opens_once_it_is_gone(path: Path) -> None:
    with StoreProcess(path, within=ANOTHER_CONTAINER) as other:
        assert other.ask("store 0 8") == "8"
        assert other.ask("read") == "reading"  # a slot and a pid of another namespace stay behind
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    assert readers(tier._index) == {os.getpid()}
    await tier.close()


async def test_a_process_that_is_paused_inside_a_change_stops_stores_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "INDEX_LOCK_WAIT_S", 0.2)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    with StoreProcess(path) as other:
        assert other.ask("hold") == "holding"
        other.signal(signal.SIGSTOP)
        keys = keys_of(100, 4)
        outcome = await tier.store(keys, filled(keys))
        assert outcome.failed == dict.fromkeys(keys, Failure.DROPPED)
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        assert tier.stats().chunks == 8
        tool = open_existing(Files(), path)
        assert usage(tool).live_chunks == 8
        close_store(tool)
        with pytest.raises(TierUnavailable, match="paused"):  # a new server would need to write
            await opened(path, capacity_bytes=2 * CAPACITY_BYTES)
        await tier.close()
        other.signal(signal.SIGCONT)
        other.tell("")
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(100, 4))
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await tier.close()


async def test_a_process_that_is_killed_inside_a_change_is_no_hindrance(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    with StoreProcess(path) as other:
        assert other.ask("hold") == "holding"
        other.kill()
        await stored(tier, keys_of(0, 8))
    await tier.close()


async def test_slots_of_killed_readers_are_freed_by_whoever_joins(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    with StoreProcess(path) as other:
        assert other.ask("read") == "reading"
    assert len(readers(tier._index)) == 2
    tier._index.free_dead_readers()
    assert readers(tier._index) == {os.getpid()}
    await tier.close()


async def test_slots_of_a_dead_process_whose_pid_came_back_are_freed(path: Path) -> None:
    with StoreProcess(path) as lasting, StoreProcess(path) as dead:
        assert dead.ask("read") == "reading"
        dead_pid = dead._process.pid
        dead.kill()
        give_slots_to(damage.home_of(path) / "lock.mdb", dead_pid, os.getpid())
        tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
        held = tier._index._env.readers().splitlines()
        ours = [line for line in held if line.split()[0] == str(os.getpid())]
        assert all(line.split()[-1] == "-" for line in ours), "none of ours reads now"
        assert lasting.ask("store 0 8") == "8"
        await tier.close()


def give_slots_to(lock: Path, old: int, new: int) -> None:
    """As if the killed process had had our pid."""
    with lock.open("r+b") as file:
        data = file.read()
        for start in range(128, len(data) - 63, 64):
            if int.from_bytes(data[start + 8 : start + 12], "little") == old:
                file.seek(start + 8)
                file.write(new.to_bytes(4, "little"))


def readers(index: object) -> set[int]:
    """The pids that have reader slots."""
    lines = index._env.readers().splitlines()  # type: ignore[attr-defined]
    return {int(line.split()[0]) for line in lines if line.split()[0].isdigit()}


async def test_a_forked_child_that_outlives_its_parent_keeps_nobody_out(path: Path) -> None:
    with StoreProcess(path) as other:
        assert other.ask("store 0 8") == "8"
        child = int(other.ask("fork"))
        other.kill()
        try:
            os.kill(child, 0)
            tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
            assert tier._store.directory.alone
            assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
            for first in range(100, 1200, 50):  # its open segment too can be taken over
                await stored(tier, keys_of(first, 50))
            await tier.close()
        finally:
            os.kill(child, signal.SIGKILL)


async def test_shared_memory_that_is_cleaned_is_told_and_never_becomes_a_second_index(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    shutil.rmtree(damage.home_of(path))
    for _ in range(2):
        tier._keeper._chores.round()
    assert caplog.text.count("something has removed or replaced the index") == 1
    with pytest.raises(TierUnavailable, match="something has cleaned /dev/shm"):
        await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(8, 8))
    assert await right(tier, keys_of(0, 16)) == keys_of(0, 16)
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert await right(tier, keys_of(0, 16)) == keys_of(0, 16)
    await tier.close()


async def test_after_a_clean_close_nothing_is_left_in_shared_memory(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert damage.home_of(path).stat().st_mode & 0o777 == 0o700
    await tier.close()
    assert not damage.home_of(path).exists()
    assert (path / "checkpoint").exists()
    mark = read_mark(path)
    assert mark is not None
    assert (mark.closed, mark.checkpoint != "") == (True, True)


async def test_after_two_sudden_ends_in_a_row_the_index_is_made_anew(path: Path) -> None:
    inodes = []
    for number in range(4):
        with StoreProcess(path) as other:
            assert other.ask(f"store {8 * number} 8") == "8"
            assert other.ask(f"look 0 {8 * number + 8}") == str(8 * number + 8)
            inodes.append(damage.home_of(path).stat().st_ino)
    assert [inodes[0] == one for one in inodes] == [True, True, False, False]
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert await right(tier, keys_of(0, 32)) == keys_of(0, 32)
    await tier.close()


async def test_an_index_that_was_found_damaged_is_made_anew_at_the_next_start(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    tier._index.damaged = True
    tier._keeper._chores.round()
    mark = read_mark(path)
    assert mark is not None
    assert mark.distrusted
    before = damage.home_of(path).stat().st_ino
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert damage.home_of(path).stat().st_ino != before
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await tier.close()


async def test_a_copy_of_a_store_in_use_is_another_store(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    shutil.copytree(path, path.with_name("copy"))
    copy = await opened(path.with_name("copy"), capacity_bytes=CAPACITY_BYTES)
    assert await right(copy, keys_of(0, 8)) == keys_of(0, 8)
    await stored(copy, keys_of(8, 8))
    assert tier.lookup(keys_of(8, 8)) == [False] * 8
    await copy.close()
    await tier.close()


async def test_who_waits_for_an_opening_waits_while_it_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPENING_WAIT_S", 0.5)
    first = module.StoreDirectory.open(Files(), path, Facts(b"", MIB, 4096))
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(0.05):
            first.step()

    worker = threading.Thread(target=go_on)
    worker.start()
    found: list[object] = []

    def join() -> None:
        try:
            found.append(module.StoreDirectory.open(Files(), path, None))
        except TierUnavailable as error:
            found.append(error)

    waiter = threading.Thread(target=join)
    waiter.start()
    waiter.join(1.5)
    assert not found, "it goes on, so the other one waits, beyond the bound without a step"
    stop.set()
    worker.join()
    waiter.join(20)
    first.give_up()
    (error,) = found
    assert "did not go on" in str(error)


@pytest.mark.root
async def test_who_joins_needs_no_room_for_temporary_files(tmp_path: Path, path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        with on_loop(tmp_path, "ext4", 16 * MIB) as (point, _):
            _fill_but_a_block(point)
            with StoreProcess(path, within=("env", f"TMPDIR={point}")) as other:
                assert other.greeting == "open"
                assert other.ask("close") == "closed"
    finally:
        await tier.close()


def _fill_but_a_block(point: Path) -> None:
    block_bytes = os.statvfs(point).f_bsize
    with (point / "filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(block_bytes))
        os.fsync(file.fileno())
        file.truncate(os.fstat(file.fileno()).st_size - block_bytes)
        os.fsync(file.fileno())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_forked_child_is_told_to_be_spawned_and_costs_no_index(path: Path) -> None:
    """The LMDB binding remembers over a fork what the parent has open."""
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(0, 8))
    before = names(damage.home_of(path)), damage.home_of(path).stat().st_ino

    async def child() -> None:
        with pytest.raises(TierUnavailable, match=r"forked.*spawn"):
            await opened(path, capacity_bytes=CAPACITY_BYTES)

    try:
        assert in_child(child) == 0
        assert (names(damage.home_of(path)), damage.home_of(path).stat().st_ino) == before
        await stored(tier, keys_of(8, 8))
        with StoreProcess(path) as other:
            assert other.ask("look 0 16") == "16"
    finally:
        await tier.close()
