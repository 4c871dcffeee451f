"""What an open leaves behind that was refused, and what a look at a directory says."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from nvme_rig import made, names, opened

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.budget import Facts
from kvtier.tiers.nvme.store.directory import StoreDirectory
from kvtier.tiers.nvme.store.opening import open_existing

NEW = Facts(b"", 1 << 20, 1 << 20)

GIVE_UP_S = 20.0

PATH_BYTES_MAX = 4096  # of Linux


class RefusingAtOpen(Files):
    """The real files, on a drive that takes no data, or has no room for the first small file."""

    def __init__(self, *, small: bool) -> None:
        self._small = small

    def write_small(self, path: Path, data: bytes) -> None:
        if self._small:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write_small(path, data)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "store"


@pytest.mark.parametrize("small", [True, False])
async def test_an_open_that_fails_takes_back_what_it_made(tmp_path: Path, path: Path, small: bool) -> None:
    with pytest.raises(
        TierUnavailable, match=r"cannot be used: (No space left on device|Input/output error)"
    ):
        await opened(path, files=RefusingAtOpen(small=small))
    assert names(tmp_path) == []


async def test_a_directory_that_was_there_stays(path: Path) -> None:
    path.parent.mkdir()
    made(path, 0o700)
    with pytest.raises(TierUnavailable):
        await opened(path, files=RefusingAtOpen(small=False))
    assert names(path) == []


async def test_a_store_that_was_there_stays_as_it_is(path: Path) -> None:
    tier = await opened(path)
    await tier.close()
    before = names(path), names(path / "namespaces")
    with pytest.raises(TierUnavailable):
        await opened(path, files=RefusingAtOpen(small=False))
    assert (names(path), names(path / "namespaces")) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo.jpg", r"holds other files \(photo\.jpg\); choose another path"),
        (
            "segments",
            r"kvtier\.json is missing from a store; kvtier fsck --repair .*; or remove .*, or choose",
        ),
    ],
)
async def test_a_directory_of_somebody_else_is_not_touched(path: Path, name: str, message: str) -> None:
    path.parent.mkdir()
    made(path, 0o700, {name: ""})
    with pytest.raises(TierUnavailable, match=message):
        await opened(path)
    assert names(path) == [name]


def test_a_look_at_nothing_makes_nothing(path: Path) -> None:
    assert StoreDirectory.look(path) is None
    assert not path.parent.exists()


def test_a_look_finds_what_an_open_made(path: Path) -> None:
    directory = StoreDirectory.open(Files(), path, NEW)
    directory.ready()
    assert StoreDirectory.look(path) == directory.facts
    directory.close()


class WaitingFiles(Files):
    """The real files; says when a lock was not to be had."""

    def __init__(self) -> None:
        self.waits = threading.Event()

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        got = super().try_lock(fd, byte, exclusive=exclusive)
        if not got:
            self.waits.set()
        return got


def test_who_waited_for_an_open_that_failed_starts_over(path: Path) -> None:
    first = StoreDirectory.open(Files(), path, NEW)
    files, found = WaitingFiles(), []
    second = threading.Thread(target=lambda: found.append(StoreDirectory.open(files, path, NEW)))
    second.start()
    assert files.waits.wait(GIVE_UP_S)
    first.give_up()
    second.join(GIVE_UP_S)
    (directory,) = found
    directory.ready()
    third = StoreDirectory.open(Files(), path, NEW)
    assert not third.alone, "the second one's lock is in the file that the path names"
    third.close()
    directory.close()
    assert os.listdir(path / "segments") == []


async def test_a_directory_whose_files_would_have_names_too_long_is_not_made(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["a" * 200] * 30)
    path = Path(str(path)[: PATH_BYTES_MAX - 40])
    with pytest.raises(TierUnavailable, match="cannot be used: File name too long"):
        await opened(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_tool_makes_no_store(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "store"
    if is_there:
        made(path, 0o700)
    with pytest.raises(TierUnavailable, match=r"is no store: it has no kvtier\.json"):
        open_existing(Files(), path)
    assert names(tmp_path) == (["store"] if is_there else [])
    assert not is_there or names(path) == []


def test_a_tool_that_waited_for_an_open_that_failed_makes_no_store(path: Path) -> None:
    first = StoreDirectory.open(Files(), path, NEW)
    files, told = WaitingFiles(), []

    def open_as_a_tool() -> None:
        try:
            open_existing(files, path)
        except TierUnavailable as error:
            told.append(str(error))

    tool = threading.Thread(target=open_as_a_tool)
    tool.start()
    assert files.waits.wait(GIVE_UP_S)
    first.give_up()
    tool.join(GIVE_UP_S)
    assert told == [f"nvme: {path} is no store: it has no kvtier.json"]
    assert not path.exists()
