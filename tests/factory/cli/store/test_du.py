from __future__ import annotations

import re
from pathlib import Path

import mounts
import pytest
from nvme_rig import CHUNK_BYTES, keys_of, stored
from store_cli import CHUNKS, run, run_json, usage, with_tier
from typer.testing import CliRunner

from kvtier.factory.cli.app import app
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.wear.terms import Terms


def test_du_tells_what_was_ever_of_use(path: Path) -> None:
    found = usage(path)
    assert found["live_chunks"] == CHUNKS
    assert found["live_bytes"] == CHUNKS * CHUNK_BYTES
    assert found["useful_bytes"] == 10 * CHUNK_BYTES
    # The mark that the store is in use is a file of its own while we look.
    assert found["allocated_bytes"] - allocated_bytes(path) in (0, BLOCK_BYTES)
    assert sum(found["parts"].values()) <= found["allocated_bytes"]
    assert (found["bound_by"], found["cap_bytes"]) == ("capacity", found["capacity_bytes"])
    code, text = run("du", str(path))
    assert code == 0
    assert "160KiB (25.0%)" in text


def test_du_tells_why_a_store_may_not_take_its_capacity(path: Path) -> None:
    free_bytes = usage(path)["free_bytes"]
    with_tier(path, lambda tier: stored(tier, keys_of(0, 1)), reserve_bytes=2 * free_bytes)
    found = usage(path)
    assert (found["bound_by"], found["cap_bytes"]) == ("free space", 0)
    _, text = run("du", str(path))
    assert re.search(
        r"^cap +0B \(\S+, less what the reserve of \S+ needs: \S+ are free\)$", text, re.MULTILINE
    )


def test_du_of_several_drives_shows_each_and_the_total(path: Path) -> None:
    other = path.with_name("other")
    with_tier(other, lambda tier: stored(tier, keys_of(0, 7)))
    code, output = run("du", str(path), str(other))
    assert code == 0
    whole = output.splitlines()
    headings = [str(path), str(other), "total"]
    assert [line for line in whole if line in headings] == headings
    assert whole[-2].startswith(f"chunks     {CHUNKS + 7}, ")
    assert whole[-1].startswith("written    ")
    stores = run_json("du", str(path), str(other))["stores"]
    assert [(one["path"], one["live_chunks"]) for one in stores] == [(str(path), CHUNKS), (str(other), 7)]


def test_du_tells_how_much_is_written_and_how_long_the_drive_lasts(path: Path) -> None:
    found = usage(path)
    assert found["written_bytes"] >= CHUNKS * CHUNK_BYTES
    assert found["written_bytes_a_day"] == found["written_bytes"], "in its first day"
    assert (found["endurance_bytes"], found["years_left"]) == (0, None), "nobody has said"
    assert "endurance" not in run("du", str(path))[1]
    with_tier(path, lambda tier: stored(tier, keys_of(100, 60)), terms=Terms(endurance_bytes=10**9))
    found = usage(path)
    assert found["written_bytes"] >= (CHUNKS + 60) * CHUNK_BYTES
    assert found["drive_writes_a_day"] == pytest.approx(
        found["written_bytes"] / found["capacity_bytes"], 1e-3
    )
    years = (10**9 - found["written_bytes"]) / found["written_bytes"] / 365.25
    assert found["years_left"] == pytest.approx(years, abs=0.01)
    _, text = run("du", str(path))
    assert re.search(r"^written +1\.\dMiB, 1\.\dMiB a day, 0\.\d+ drive writes a day$", text, re.MULTILINE)
    assert re.search(r"^endurance +953\.7MiB; 1\.\d years left at this rate$", text, re.MULTILINE)


@pytest.mark.root
def test_du_and_ls_show_the_checkpoint_and_its_age_where_the_store_is_out_of_reach(path: Path) -> None:
    mounts.run("mount", "--bind", path, path)
    mounts.run("mount", "-o", "remount,bind,ro", path)
    try:
        for command in ("du", "ls"):
            result = CliRunner().invoke(app, [command, str(path)])
            assert result.exit_code == 0, result.output
            assert re.search(r"Read-only.*\nshowing its checkpoint, \d+s old", result.stderr)
        assert run("rm", str(path), "--all", "--yes")[0] != 0
    finally:
        mounts.run("umount", path)
    assert usage(path)["live_chunks"] == CHUNKS
