from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvtier.tiers.base import Buffer
from kvtier.tiers.nvme.io.files import (
    BLOCK_BYTES,
    IOV_MAX,
    LOAD_LANES,
    Files,
    Lanes,
    aligned,
    allocated_bytes,
    read_all,
    scratch,
    write_all,
)

FILES = Files()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = FILES.open_data(tmp_path / "data", create=True, write=True)
    yield fd
    FILES.close(fd)


class Short(Files):
    """Moves one block at a time, as a kernel may."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().pwritev(fd, [buffers[0][:BLOCK_BYTES]], offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().preadv(fd, [buffers[0][:BLOCK_BYTES]], offset)


class Stuck(Files):
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return 0


class Picky(Files):
    """Refuses memory that is not aligned, as drives may; counts what it takes."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        _refuse_unaligned(buffers)
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        _refuse_unaligned(buffers)
        return super().preadv(fd, buffers, offset)


def _refuse_unaligned(buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        if ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 512:
            raise OSError(errno.EINVAL, "not aligned")


def blocks(count: int) -> Buffer:
    memory = scratch(count * BLOCK_BYTES)
    memory[:] = os.urandom(len(memory))
    return memory


def test_sizes_are_rounded_up_to_blocks() -> None:
    assert [aligned(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert len(scratch(1)) == len(scratch(0)) == BLOCK_BYTES


@pytest.mark.parametrize("files", [Files(), Short(), Picky()])
def test_what_is_written_reads_back(files: Files, fd: int) -> None:
    parts = [blocks(3), blocks(1), blocks(2)]
    write_all(files, fd, parts, BLOCK_BYTES)
    back = [scratch(2 * BLOCK_BYTES), scratch(4 * BLOCK_BYTES)]
    assert read_all(files, fd, back, BLOCK_BYTES) == 6 * BLOCK_BYTES
    assert b"".join(map(bytes, back)) == b"".join(map(bytes, parts))


@pytest.mark.parametrize("files", [Files(), Picky()])
def test_memory_of_any_alignment_is_written_and_read(files: Files, fd: int) -> None:
    memory = memoryview(bytearray(os.urandom(BLOCK_BYTES + 1)))[1:]
    write_all(files, fd, [memory], 0)
    back = memoryview(bytearray(BLOCK_BYTES + 1))[1:]
    assert read_all(files, fd, [back], 0) == BLOCK_BYTES
    assert bytes(back) == bytes(memory)


def test_more_parts_than_one_call_takes_are_written(fd: int) -> None:
    memory = blocks(IOV_MAX + 10)
    parts = [memory[i : i + BLOCK_BYTES] for i in range(0, len(memory), BLOCK_BYTES)]
    write_all(FILES, fd, parts, 0)
    back = scratch(len(memory))
    assert read_all(FILES, fd, [back], 0) == len(memory)
    assert bytes(back) == bytes(memory)


def test_a_read_past_the_end_says_how_much_there_was(fd: int) -> None:
    write_all(FILES, fd, [blocks(2)], 0)
    assert read_all(FILES, fd, [scratch(4 * BLOCK_BYTES)], 0) == 2 * BLOCK_BYTES
    assert read_all(FILES, fd, [scratch(BLOCK_BYTES)], 8 * BLOCK_BYTES) == 0
    assert read_all(Picky(), fd, [memoryview(bytearray(3 * BLOCK_BYTES + 1))[1:]], 0) == 2 * BLOCK_BYTES


def test_a_write_that_makes_no_progress_is_an_error(fd: int) -> None:
    with pytest.raises(OSError, match="no progress"):
        write_all(Stuck(), fd, [blocks(1)], 0)


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    FILES.write_small(tmp_path / "small", b"one")
    FILES.write_small(tmp_path / "small", b"two")
    assert (tmp_path / "small").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_allocated_bytes_are_those_of_du(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(100_000))
    sparse = os.open(tmp_path / "sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(sparse, 1 << 30)
    os.close(sparse)
    du = subprocess.run(["du", "-s", "-B1", tmp_path], capture_output=True, text=True, check=True)
    assert allocated_bytes(tmp_path) == int(du.stdout.split()[0])


def test_a_lock_is_between_open_files_also_of_one_process(tmp_path: Path) -> None:
    first = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    second = os.open(tmp_path / "lock", os.O_RDWR)
    assert FILES.try_lock(first, 0, exclusive=False)
    assert FILES.try_lock(second, 0, exclusive=False)
    assert not FILES.try_lock(second, 0, exclusive=True)
    assert FILES.try_lock(second, 1, exclusive=True)
    assert not FILES.try_lock(first, 1, exclusive=False)
    os.close(first)
    assert FILES.try_lock(second, 0, exclusive=True)
    FILES.unlock(second, 0)
    os.close(second)


def test_a_killed_process_gives_its_locks_up(tmp_path: Path) -> None:
    code = (
        "import os, sys; from kvtier.tiers.nvme.io.files import Files\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "assert Files().try_lock(fd, 0, exclusive=True); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        fd = os.open(tmp_path / "lock", os.O_RDWR)
        assert not FILES.try_lock(fd, 0, exclusive=False)
        child.kill()
        child.wait()
        assert FILES.try_lock(fd, 0, exclusive=True)
        os.close(fd)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()


async def test_every_piece_runs_once_and_on_a_lane(lanes: Lanes) -> None:
    ran: list[tuple[int, str]] = []
    pieces = [lambda i=i: ran.append((i, threading.current_thread().name)) for i in range(50)]
    await lanes.load(pieces)
    await lanes.store(pieces, then=lambda: None)
    assert sorted(number for number, _ in ran) == sorted([*range(50), *range(50)])
    assert {name.rpartition("_")[0] for _, name in ran} == {"kvtier-load", "kvtier-store"}


async def test_the_index_has_one_thread(lanes: Lanes) -> None:
    names = await asyncio.gather(*(lanes.index(threading.get_ident) for _ in range(8)))
    assert len(set(names)) == 1


async def test_nothing_to_do_is_done(lanes: Lanes) -> None:
    await lanes.load([])
    await lanes.store([], then=lambda: None)


async def test_a_failing_piece_is_raised_after_all_lanes_have_ended(lanes: Lanes) -> None:
    running = threading.Semaphore(0)

    def bad() -> None:
        running.release()
        raise ValueError("bad piece")

    with pytest.raises(ValueError, match="bad piece"):
        await lanes.load([bad, *([running.release] * 7)])
    assert all(running.acquire(blocking=False) for _ in range(8))


async def test_a_cancelled_call_returns_only_when_its_threads_are_done(lanes: Lanes) -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()
    left: list[int] = []

    def piece() -> None:
        started.set()
        release.wait()
        ended.set()

    task = asyncio.create_task(lanes.load([piece] * LOAD_LANES + [lambda: left.append(1)] * 4))
    await asyncio.to_thread(started.wait)
    for _ in range(3):  # however often it is cancelled
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert not left


async def test_what_comes_after_a_store_comes_after_all_its_pieces(lanes: Lanes) -> None:
    order: list[str] = []

    def slow() -> None:
        time.sleep(0.02)
        order.append("piece")

    def then() -> int:
        order.append("then")
        return 7

    assert await lanes.store([slow] * 20, then=then) == 7
    assert order == ["piece"] * 20 + ["then"]


async def test_what_comes_after_a_cancelled_store_does_not_come(lanes: Lanes) -> None:
    started, release = threading.Event(), threading.Event()
    told: list[str] = []

    def piece() -> None:
        started.set()
        release.wait()

    task = asyncio.create_task(lanes.store([piece], then=lambda: told.append("then")))
    await asyncio.to_thread(started.wait)
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not told


async def test_stores_stand_aside_while_loads_are_under_way(lanes: Lanes) -> None:
    started, release = threading.Event(), threading.Event()

    def loading() -> None:
        started.set()
        release.wait()

    load = asyncio.create_task(lanes.load([loading]))
    await asyncio.to_thread(started.wait)
    assert not lanes._quiet.is_set()
    await lanes.store([lambda: None], then=lambda: None)  # a bounded while: not until the load has ended
    release.set()
    await load
    assert lanes._quiet.is_set()


def test_scratch_is_page_aligned() -> None:
    assert ctypes.addressof(ctypes.c_char.from_buffer(scratch(10))) % mmap.PAGESIZE == 0
