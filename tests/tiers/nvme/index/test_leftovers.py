"""What killed servers leave in shared memory, once their stores are gone."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import damage
from nvme_rig import keys_of, opened, stored
from store_process import StoreProcess

from kvtier.tiers.nvme.index.leftovers import THREAD_NAME


async def open_another(path: Path) -> None:
    """Open and close another store; what that does in the background is done."""
    tier = await opened(path)
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join()
    await stored(tier, keys_of(0, 8))
    await tier.close()


def killed(path: Path) -> Path:
    """A server that was killed; returns where it has left its index."""
    with StoreProcess(path) as server:
        assert server.ask("store 0 64") == "64"
        server.kill()
    home = damage.home_of(path)
    assert home.exists()
    return home


async def test_the_index_of_a_store_that_is_gone_is_removed(tmp_path: Path) -> None:
    home = killed(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    await open_another(tmp_path / "other")
    assert not home.exists()


async def test_the_index_of_a_store_in_whose_place_another_is_is_removed(tmp_path: Path) -> None:
    home = killed(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "old")  # so that its inodes are not used again
    shutil.copytree(tmp_path / "old", tmp_path / "store")
    await open_another(tmp_path / "other")
    assert not home.exists()


async def test_the_index_of_a_store_that_is_there_is_kept(tmp_path: Path) -> None:
    home = killed(tmp_path / "store")
    await open_another(tmp_path / "other")
    assert home.exists()
    with StoreProcess(tmp_path / "store") as server:
        assert server.ask("look 0 64") == "64"
        assert server.ask("close") == "closed"
    assert not home.exists()


async def test_an_index_in_use_is_kept_though_its_store_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with StoreProcess(path) as server:
        home = damage.home_of(path)
        path.rename(tmp_path / "moved")
        await open_another(tmp_path / "other")
        assert home.exists()
        server.kill()
    await open_another(tmp_path / "other")
    assert not home.exists()


async def test_one_that_is_just_being_made_is_kept(tmp_path: Path) -> None:
    home = killed(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    owner = (home / "store").read_text()
    for half in ("", owner[:-1]):
        (home / "store").write_text(half)
        await open_another(tmp_path / "other")
        assert home.exists()
    (home / "store").write_text(owner)
    await open_another(tmp_path / "other")
    assert not home.exists()


async def test_a_path_of_any_bytes_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"st\xffre\n")
    home = killed(path)
    await open_another(tmp_path / "other")
    assert home.exists()
    shutil.rmtree(path)
    await open_another(tmp_path / "other")
    assert not home.exists()
