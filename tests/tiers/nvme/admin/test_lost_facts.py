"""kvtier.json is lost or damaged: a start says what to do, and a repair brings every chunk back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nvme_rig import keys_of, opened, right, stored

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.facts import FORMAT

CHUNKS = 200


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _garbled(file: Path) -> None:
    file.write_bytes(bytes(reversed(file.read_bytes())))


def repaired(path: Path) -> None:
    check_directory(Files(), path, deep=False, repair=True, progress=lambda done, of: None)


@pytest.mark.parametrize("harm", [Path.unlink, _empty, _garbled], ids=["removed", "empty", "garbled"])
async def test_a_repair_finds_in_the_segments_what_stood_there(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, CHUNKS))
    await tier.close()
    before = json.loads((path / "kvtier.json").read_text())
    harm(path / "kvtier.json")
    with pytest.raises(TierUnavailable, match=r"kvtier fsck --repair"):
        await opened(path)
    repaired(path)
    assert json.loads((path / "kvtier.json").read_text()) == before
    tier = await opened(path)
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


async def test_a_store_of_another_format_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    await tier.close()
    facts = path / "kvtier.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "format": FORMAT + 1}))
    before = facts.read_bytes()
    with pytest.raises(TierUnavailable, match="newer"):
        repaired(path)
    assert facts.read_bytes() == before


async def test_a_store_without_segments_says_that_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await tier.close()
    (path / "kvtier.json").unlink()
    with pytest.raises(TierUnavailable, match="no segment says"):
        repaired(path)
