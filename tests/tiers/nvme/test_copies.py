"""Copies of a store that a backup has made, also while servers used it."""

from __future__ import annotations

import shutil
from pathlib import Path

from nvme_rig import keys_of, made, opened, right, stored

from kvtier.tiers.base import RemoveReason
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.glance import glance

OLD, REMOVED, NEW = keys_of(0, 30), keys_of(30, 10), keys_of(100, 40)
FIRST = ("checkpoint", "in-use", "kvtier.json", "lock")  # in the order of a backup
THEN = ("namespaces", "quarantine", "segments")


async def copied_while_it_was_opened(path: Path, copy: Path) -> None:
    """A copy whose small files are from before a server used the store, and whose log is from after."""
    tier = await opened(path)
    await stored(tier, [*OLD, *REMOVED])
    await tier.close()
    made(copy, 0o700)
    for name in FIRST:
        shutil.copy2(path / name, copy / name)
    tier = await opened(path)
    await tier.remove(REMOVED, RemoveReason.REQUESTED)
    await stored(tier, NEW)
    await tier.flush()
    for name in THEN:
        shutil.copytree(path / name, copy / name)
    await tier.close()


async def test_a_copy_that_took_long_has_all_that_its_log_has(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    await copied_while_it_was_opened(tmp_path / "store", copy)
    for _ in range(2):
        tier = await opened(copy)
        assert await right(tier, [*OLD, *NEW]) == [*OLD, *NEW]
        assert not any(tier.lookup(REMOVED)), "removals are final, in a copy too"
        await tier.close()


async def test_a_copy_does_not_say_that_its_checkpoint_is_the_last(tmp_path: Path) -> None:
    path, copy = tmp_path / "store", tmp_path / "copy"
    await copied_while_it_was_opened(path, copy)
    with glance(Files(), copy) as seen:
        assert not seen.is_current
    with glance(Files(), path) as seen:
        assert seen.is_current


async def test_a_copy_is_used_beside_the_original(tmp_path: Path) -> None:
    path, copy = tmp_path / "store", tmp_path / "copy"
    tier = await opened(path)
    await stored(tier, OLD)
    await tier.flush()
    shutil.copytree(path, copy)
    copy.chmod(0o700)
    other = await opened(copy)
    await stored(other, NEW)
    await stored(tier, REMOVED)
    assert await right(other, [*OLD, *NEW, *REMOVED]) == [*OLD, *NEW]
    assert await right(tier, [*OLD, *NEW, *REMOVED]) == [*OLD, *REMOVED]
    await other.close()
    await tier.close()
