"""A store opens whatever its small files look like after a damage, and whatever is around it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import run
from nvme_rig import IDENTITY, keys_of, names, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.store.checkpoint import write_checkpoint
from kvtier.tiers.nvme.store.quarantine import FILES_MAX

KEYS = keys_of(0, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def make(path: Path) -> None:
    tier = await opened(path)
    await stored(tier, KEYS)
    await tier.close()


def namespace_file(path: Path) -> Path:
    return path / "namespaces" / f"{IDENTITY.digest.hex()}.json"


def changed(**fields: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **fields})


DAMAGES: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "deep": lambda _: "[" * 100_000,
    "no object": lambda _: "7",
    "another scope": changed(scope=7),
    "the last scope": changed(scope=(1 << 32) - 1),
    "a scope out of range": changed(scope=1 << 40),
    "an endless scope": changed(scope=float("inf")),
    "a scope below all": changed(scope=-5),
    "an epoch out of range": changed(epoch=1 << 70),
    "another field": lambda text: text.replace("bfloat16", "bfloat17"),
    "no checksum": lambda text: json.dumps({**json.loads(text), "checksum": None}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_file_of_a_namespace_is_as_good_as_lost_and_written_anew(
    path: Path, damage: Callable[[str], str]
) -> None:
    await make(path)
    file = namespace_file(path)
    whole = file.read_text()
    file.write_text(damage(whole))
    tier = await opened(path)
    assert await right(tier, KEYS) == KEYS
    await stored(tier, keys_of(8, 8))
    await tier.close()
    assert file.read_text() == whole


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_without_a_checkpoint_a_damaged_file_of_a_namespace_keeps_nobody_out(
    path: Path, damage: Callable[[str], str]
) -> None:
    await make(path)
    (path / "checkpoint").unlink()
    file = namespace_file(path)
    file.write_text(damage(file.read_text()))
    tier = await opened(path)
    assert await right(tier, KEYS) == []
    await stored(tier, KEYS)
    assert await right(tier, KEYS) == KEYS
    await tier.close()


async def test_a_damaged_file_of_a_namespace_brings_no_older_epoch_back(path: Path) -> None:
    tier = await opened(path)
    await stored(tier, KEYS)
    write_checkpoint(tier._store.directory, tier._index)
    await tier.invalidate()
    left = path.with_name("left")
    shutil.copytree(path, left)
    await tier.close()
    namespace_file(left).write_text("\0" * 100)
    tier = await opened(left)
    assert not any(tier.lookup(KEYS))
    await tier.close()


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\xff" * 5000, b"\0"], ids=repr)
async def test_whatever_is_in_the_lock_file_the_store_opens(path: Path, data: bytes) -> None:
    await make(path)
    (path / "lock").write_bytes(data)
    for _ in range(2):
        tier = await opened(path)
        assert await right(tier, KEYS) == KEYS
        await tier.close()


def _is_a_directory(evidence: Path) -> None:
    evidence.mkdir()


def _is_a_link_to_nothing(evidence: Path) -> None:
    evidence.symlink_to("nowhere")


@pytest.mark.parametrize("oldest", [_is_a_directory, _is_a_link_to_nothing])
async def test_evidence_that_cannot_be_removed_keeps_nobody_out(
    path: Path, oldest: Callable[[Path], None]
) -> None:
    await make(path)
    for number in range(1, FILES_MAX + 5):
        (path / "quarantine" / f"{number:020d}.chunk").write_bytes(b"x")
    oldest(path / "quarantine" / f"{0:020d}.chunk")
    tier = await opened(path)
    assert await right(tier, KEYS) == KEYS
    await tier.close()


@pytest.mark.parametrize("below", ["", "store"])
async def test_a_link_to_a_drive_that_is_not_mounted_is_named(tmp_path: Path, below: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "drive" / "kv")
    with pytest.raises(TierUnavailable, match=r"link is a link to .*/drive/kv, where nothing is; mount"):
        await opened(link / below)
    assert names(tmp_path) == ["link"]


@pytest.fixture
def strange_mount(tmp_path: Path) -> Iterator[Path]:
    """A mount whose name has what other programs take for the end of a line."""
    point = tmp_path / "a\rb\x0cc\x85d\u2028e\nf\udcff g"
    point.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", point)
    yield point
    run("umount", point)


@pytest.mark.root
async def test_a_mount_with_a_strange_name_is_in_nobodys_way(path: Path, strange_mount: Path) -> None:
    for place in (path, strange_mount / "store"):
        await make(place)


@pytest.mark.parametrize("name", ["kvtier.json", "in-use"])
async def test_what_a_cleaner_takes_from_a_store_in_use_is_written_again(path: Path, name: str) -> None:
    tier = await opened(path)
    try:
        await stored(tier, KEYS)
        await tier._keeper.stop()
        (path / name).unlink()
        work = tier._keeper._chores
        work._look_due_s = 0.0
        work.round()
        with StoreProcess(path) as other:
            assert other.greeting == "open"
            other.end()
    finally:
        await tier.close()
    tier = await opened(path)
    assert await right(tier, KEYS) == KEYS
    await tier.close()


async def test_a_directory_that_was_removed_is_not_made_again(path: Path) -> None:
    tier = await opened(path)
    try:
        await tier._keeper.stop()
        shutil.rmtree(path)
        tier._keeper._chores._look_due_s = 0.0
        tier._keeper._chores.round()
        assert names(path.parent) == []
    finally:
        await tier.close()
