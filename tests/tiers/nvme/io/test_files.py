from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from faults import in_child
from mounts import in_memory, run

from kvtier.tiers.nvme.io.files import Files, allocated_bytes, free_bytes

FILES = Files()


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    FILES.write_small(tmp_path / "small", b"one")
    FILES.write_small(tmp_path / "small", b"two")
    assert (tmp_path / "small").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_small_file_that_is_written_in_part_is_refused(tmp_path: Path, overwritten: bool) -> None:
    """A call may write a part, at the end of a drive's room or of a limit; what is there then stays."""
    path, before = tmp_path / "small", b"one" * 2000

    async def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="too large"):
            (FILES.overwrite_small if overwritten else FILES.write_small)(path, b"two" * 2000)

    FILES.write_small(path, before)
    assert in_child(write) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    if not overwritten:
        assert path.read_bytes() == before


@pytest.mark.root
def test_a_small_file_for_which_there_is_no_room_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    with in_memory(tmp_path / "drive", 64 * 1024) as point:
        small = point / "small"
        FILES.write_small(small, b"old")
        room_bytes = free_bytes(point)
        with (point / "filler").open("wb") as file:
            file.write(bytes(room_bytes - 4096))
        with pytest.raises(OSError, match="No space left on device"):
            FILES.write_small(small, b"n" * 5000)  # more than one page: the first part of it has room
        assert small.read_bytes() == b"old"
        assert sorted(path.name for path in point.iterdir()) == ["filler", "small"]
        FILES.write_small(small, b"new")
        assert small.read_bytes() == b"new"


@pytest.mark.root
def test_a_file_system_that_tells_no_size_has_room(tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=0", "tmpfs", tmp_path)
    try:
        assert free_bytes(tmp_path) > 1 << 60
    finally:
        run("umount", tmp_path)


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
