from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from loop_rig import drive

from kvtier.tiers.nvme.io.files import ZEROS_BYTES, Files
from kvtier.tiers.nvme.io.kernel import NOT_SUPPORTED, fallocate, magic_of, set_no_cow

MIB = 1024 * 1024


def test_room_is_taken_for_the_whole_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        fallocate(fd, MIB)
        state = os.fstat(fd)
        assert (state.st_size, state.st_blocks * 512 >= MIB) == (MIB, True)
    finally:
        os.close(fd)


def test_an_error_is_an_oserror() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        fallocate(-1, MIB)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(FileNotFoundError):
        magic_of(Path("/nowhere/at/all"))


def test_a_type_has_its_number() -> None:
    assert magic_of(Path("/proc")) == 0x9FA0


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext2", "ext3", "bindfs"])
@pytest.mark.parametrize("direct", [True, False])
def test_where_no_room_can_be_taken_ahead_it_is_written(tmp_path: Path, kind: str, direct: bool) -> None:
    files = Files()
    files.direct = direct
    size_bytes = 2 * ZEROS_BYTES + 4096
    with drive(kind, tmp_path) as made:
        fd = files.open_data(made.point / "segment", create=True, write=True)
        try:
            with pytest.raises(OSError, match=r"not supported|Invalid argument") as refused:
                fallocate(fd, size_bytes)
            assert refused.value.errno in NOT_SUPPORTED
            files.allocate(fd, size_bytes)
            files.sync_data(fd)
            state = os.fstat(fd)
            assert (state.st_size, state.st_blocks * 512 >= size_bytes) == (size_bytes, True)
        finally:
            os.close(fd)


@pytest.mark.root
def test_a_full_file_system_says_so_also_where_room_is_written(tmp_path: Path) -> None:
    with drive("ext2", tmp_path, 8 * MIB) as made:
        fd = Files().open_data(made.point / "segment", create=True, write=True)
        try:
            with pytest.raises(OSError, match="No space left"):
                Files().allocate(fd, 64 * MIB)
        finally:
            os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize(("kind", "is_set"), [("btrfs", True), ("ext4", False), ("tmpfs", False)])
def test_overwriting_in_place_can_be_asked_of_what_copies(tmp_path: Path, kind: str, is_set: bool) -> None:
    with drive(kind, tmp_path) as made:
        fd = os.open(made.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert set_no_cow(fd) is is_set
            assert set_no_cow(fd) is is_set
        finally:
            os.close(fd)
