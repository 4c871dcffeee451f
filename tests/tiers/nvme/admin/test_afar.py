"""Checking a store by its checkpoint, while a server in another container uses it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import damage
import pytest
from nvme_rig import keys_of
from store_process import StoreProcess

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.afar import check_afar
from kvtier.tiers.nvme.admin.finding import Kind, Report
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.directory import OutOfReach

CONTAINER = ("unshare", "--pid", "--fork", "--kill-child")
OLD, NEW = keys_of(0, 600), keys_of(1000, 600)  # of 16 KiB, under a cap of 16 MiB

pytestmark = pytest.mark.root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that was closed."""
    path = tmp_path / "store"
    with StoreProcess(path) as server:
        assert server.ask("store 0 600") == "600"
        assert server.ask("close") == "closed"
    return path


@pytest.fixture
def server(path: Path) -> Iterator[StoreProcess]:
    """A server in another container, which has overwritten a part of what the checkpoint names."""
    with StoreProcess(path, within=CONTAINER) as server:
        for first in range(1000, 1600, 50):
            assert server.ask(f"store {first} 50") == "50"
        assert 0 < int(server.ask("look 0 600")) < 600
        yield server


def checked(path: Path) -> Report:
    return check_afar(Files(), path, deep=True, progress=lambda done, total: None)[0]


def overwritten(path: Path, number: int, block: int) -> None:
    with (path / "segments" / f"{number:08d}.seg").open("r+b") as file:
        file.seek(block * BLOCK_BYTES)
        file.write(b"\xff" * BLOCK_BYTES)


def test_what_a_server_did_since_is_no_finding(path: Path, server: StoreProcess) -> None:
    with pytest.raises(OutOfReach, match="hostPID"):
        check_directory(Files(), path, deep=False, repair=False, progress=lambda done, total: None)
    report = checked(path)
    assert report.findings == ()
    assert report.chunks == len(OLD)
    assert server.ask("close") == "closed"


def test_damage_of_what_the_checkpoint_names_is_found(path: Path) -> None:
    place = damage.using(path, lambda store: damage.extent_of(store, OLD[-1]))
    with StoreProcess(path, within=CONTAINER) as server:
        overwritten(path, place.segment, place.block)
        (finding,) = checked(path).findings
        assert (finding.kind, finding.where.key) == (Kind.CONTENT, OLD[-1])
        assert server.ask("close") == "closed"


def test_a_lost_file_is_found_where_nobody_has_used_the_store_since(path: Path) -> None:
    lost = sorted((path / "segments").iterdir())[0]
    lost.unlink()
    found = {finding.kind for finding in checked(path).findings}
    assert Kind.LOST_FILE in found


def test_without_a_checkpoint_nothing_can_be_checked(path: Path) -> None:
    (path / "checkpoint").unlink()
    with pytest.raises(TierUnavailable, match="no checkpoint"):
        checked(path)


def test_a_check_changes_nothing(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "before")
    checked(path)
    assert contents(path) == contents(tmp_path / "before")


def contents(root: Path) -> dict[Path, bytes]:
    return {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
