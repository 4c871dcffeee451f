"""Where the index of a store is, whether it is whole, and what becomes of it when a part of that is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import damage
import pytest
from crash_child import DeadlyFiles
from faults import in_child
from mounts import run
from nvme_rig import MIB, keys_of, names, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.home import UNCLEAN_MAX

CAPACITY_BYTES = 16 * MIB
INDEX_FILES = ("store", "writer", "lock.mdb", "data.mdb")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "memory"
    place.mkdir()
    return place


def home_in(place: Path) -> Path:
    """The directory of the only index there."""
    (home,) = place.iterdir()
    return home


async def left_well(path: Path, first: int, count: int) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(first, count))
    await tier.close()


def killed_after(path: Path, first: int, count: int) -> None:
    with StoreProcess(path) as server:
        assert server.ask(f"store {first} {count}") == str(count)
        server.kill()


async def assert_there(path: Path, first: int, count: int, files: Files | None = None) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, files=files)
    try:
        await tier._keeper.caught_up()
        assert await right(tier, keys_of(first, count)) == keys_of(first, count)
    finally:
        await tier.close()


# An index that is not whole.


@pytest.mark.parametrize("step", ["index restored", "index framed"])
async def test_an_index_that_was_being_made_is_never_taken_for_a_whole_one(path: Path, step: str) -> None:
    """The checkpoint that it begins with was whole in its time."""
    await left_well(path, 0, 20)
    for number in range(UNCLEAN_MAX):
        killed_after(path, 100 * number + 100, 20)

    async def child() -> None:
        await opened(path, capacity_bytes=CAPACITY_BYTES, files=DeadlyFiles(step, 1))

    assert in_child(child) == -signal.SIGKILL
    await assert_there(path, 0, 20)
    for number in range(UNCLEAN_MAX):
        await assert_there(path, 100 * number + 100, 20)


# The mark.


def _cut(mark: Path) -> None:
    os.truncate(mark, 100)


def _empty(mark: Path) -> None:
    os.truncate(mark, 0)


def _blank(mark: Path) -> None:
    mark.write_bytes(b" " * 512)


def _zeros(mark: Path) -> None:
    mark.write_bytes(bytes(512))


def _one_letter(mark: Path) -> None:
    mark.write_bytes(mark.read_bytes().replace(b"boot", b"bOot"))


def _one_value(mark: Path) -> None:
    mark.write_bytes(mark.read_bytes().replace(b'"closed": false', b'"closed": true '))


DAMAGE = [Path.unlink, _cut, _empty, _blank, _zeros, _one_letter, _one_value]


@pytest.mark.parametrize("reboot", [False, True], ids=["same boot", "reboot"])
@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
async def test_what_was_stored_outlives_the_loss_of_the_mark(
    path: Path, harm: Callable[[Path], None], reboot: bool
) -> None:
    await left_well(path, 0, 20)
    killed_after(path, 100, 20)
    harm(path / "in-use")
    if reboot:
        damage.lose_memory(path)
    await assert_there(path, 100, 20)


async def test_a_mark_that_is_lost_while_the_store_is_in_use_costs_nothing(path: Path) -> None:
    await left_well(path, 0, 20)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, keys_of(100, 20))
    (path / "in-use").unlink()
    await tier.close()
    await assert_there(path, 0, 20)
    await assert_there(path, 100, 20)


async def test_a_checkpoint_that_is_older_than_the_mark_is_not_taken_to_be_all(path: Path) -> None:
    await left_well(path, 0, 20)
    shutil.copy2(path / "checkpoint", path.with_name("older"))
    await left_well(path, 100, 20)
    shutil.copy2(path.with_name("older"), path / "checkpoint")
    await assert_there(path, 100, 20)


async def test_a_start_after_a_close_reads_no_chunk_of_the_log_again(path: Path) -> None:
    await left_well(path, 0, 20)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    with tier._index.read() as txn:
        assert txn.unread() == []
        assert txn.number("rebuilt_s") == 0
    assert json.loads((path / "in-use").read_text())["checkpoint"] == ""
    await tier.close()
    before = (path / "checkpoint").stat().st_ino
    damage.using(path, lambda store: None)
    assert (path / "checkpoint").stat().st_ino == before, "a tool changes nothing: it is still the one"
    assert json.loads((path / "in-use").read_text())["checkpoint"] != ""


# Files of the index that something removes or replaces.


def _replaced(file: Path) -> None:
    """By a copy with the same contents."""
    shutil.copy2(file, file.with_name("copy"))
    file.with_name("copy").rename(file)


@pytest.mark.parametrize("name", INDEX_FILES)
@pytest.mark.parametrize("harm", [Path.unlink, _replaced], ids=["removed", "replaced"])
async def test_an_index_of_which_a_file_is_another_is_joined_by_nobody(
    path: Path,
    place: Path,
    name: str,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, memory=place)
    try:
        await stored(tier, keys_of(0, 8))
        home = home_in(place)
        harm(home / name)
        with StoreProcess(path, place) as other:
            assert other.greeting.startswith("OutOfReach")
            assert str(place) in other.greeting
        for _ in range(2):
            tier._keeper._chores.round()
        assert caplog.text.count("removed or replaced the index") == 1
        await stored(tier, keys_of(8, 8))
        assert await right(tier, keys_of(0, 16)) == keys_of(0, 16)
    finally:
        await tier.close()
    assert names(place) == []
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, memory=place)
    assert await right(tier, keys_of(0, 16)) == keys_of(0, 16)
    await tier.close()


@pytest.mark.parametrize("name", INDEX_FILES)
async def test_an_index_of_which_a_file_is_another_is_made_anew_by_who_is_alone(
    path: Path, place: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with StoreProcess(path, place) as server:
        assert server.ask("store 0 8") == "8"
        server.kill()
    home = home_in(place)
    (home / name).unlink()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, memory=place)
    assert "made anew" in caplog.text
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await tier.close()


# What else may be where the index has to be.


def _file(at: Path) -> None:
    at.write_text("somebody else's")


def _link(at: Path) -> None:
    (at.parent / "elsewhere").mkdir()
    at.symlink_to(at.parent / "elsewhere")


def _dangling(at: Path) -> None:
    at.symlink_to("nowhere")


def _foreign(at: Path) -> None:
    at.mkdir()
    os.chown(at, 1000, 1000)


KINDS = [_file, _link, _dangling, pytest.param(_foreign, marks=pytest.mark.root)]


@pytest.mark.parametrize("put", KINDS)
async def test_what_is_in_the_place_of_the_index_is_named_and_left_alone(
    path: Path, place: Path, put: Callable[[Path], None]
) -> None:
    tier = await opened(path, memory=place)
    await stored(tier, keys_of(0, 8))
    home = home_in(place)
    await tier.close()
    put(home)
    before = home.lstat()
    with pytest.raises(TierUnavailable, match=f"{home.name}.*remove it"):
        await opened(path, memory=place)
    assert home.lstat() == before
    home.rmdir() if home.is_dir() and not home.is_symlink() else home.unlink()
    tier = await opened(path, memory=place)
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await tier.close()


@pytest.mark.parametrize("put", KINDS)
async def test_what_is_put_in_the_place_of_an_index_in_use_is_named(
    path: Path, place: Path, put: Callable[[Path], None]
) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, memory=place)
    home = home_in(place)
    home.rename(home.with_name("away"))
    put(home)
    with StoreProcess(path, place) as other:
        assert other.greeting.startswith("TierUnavailable")
        assert home.name in other.greeting
    await tier.close()


@pytest.mark.root
async def test_shared_memory_that_is_read_only_is_named_and_costs_nothing(path: Path, place: Path) -> None:
    await left_well(path, 0, 8)
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place)
    try:
        with pytest.raises(TierUnavailable, match=f"shared memory: {place}.*Read-only.*mount a tmpfs"):
            await opened(path, capacity_bytes=CAPACITY_BYTES, memory=place)
    finally:
        run("umount", "--lazy", place)
    await assert_there(path, 0, 8)


# Resources that the system has not: they cost no index.


async def test_an_index_is_not_given_up_for_want_of_descriptors(path: Path, place: Path) -> None:
    with StoreProcess(path, place) as server:
        assert server.ask("store 0 8") == "8"
        server.kill()
    home = home_in(place)
    before = home.stat().st_ino
    for limit in range(6, 20):
        with StoreProcess(path, place, within=("prlimit", f"--nofile={limit}:{limit}")) as server:
            if server.greeting == "open":
                break
            assert "damaged" not in server.greeting.lower()
        if not home.exists():  # it got as far as to leave the store well
            assert json.loads((path / "in-use").read_text())["checkpoint"] != ""
            break
        assert home.stat().st_ino == before, f"with {limit} descriptors"
    await assert_there(path, 0, 8)


# A namespace's file.


async def test_the_chunks_of_a_namespace_whose_file_is_lost_are_kept_and_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await left_well(path, 0, 20)
    (file,) = (path / "namespaces").glob("*.json")
    file.unlink()
    await assert_there(path, 0, 20)
    assert f"{file} is missing or damaged: its chunks are kept" in caplog.text
    assert file.exists(), "whoever opens the namespace writes it again"


async def test_a_namespace_that_was_lost_since_the_checkpoint_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await left_well(path, 0, 20)
    killed_after(path, 100, 20)
    (file,) = (path / "namespaces").glob("*.json")
    file.unlink()
    damage.lose_memory(path)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await tier.close()
    assert f"{file} is missing or damaged: it was removed or lost" in caplog.text
