from __future__ import annotations

import json
import re
from pathlib import Path

import damage
import mounts
import pytest
from nvme_rig import keys_of
from store_cli import CHUNKS, run, usage
from typer.testing import CliRunner

from kvtier.factory.cli.app import app


def test_a_whole_store_is_clean(path: Path) -> None:
    assert run("fsck", str(path), "--deep")[0] == 0


def test_fsck_exits_with_1_until_what_it_found_is_mended(path: Path) -> None:
    key = keys_of(7, 1)[0]
    damage.using(path, damage.flipped(key))
    assert run("fsck", str(path))[0] == 0, "only --deep reads chunks"
    code, text = run("fsck", str(path), "--deep")
    assert code == 1
    assert f"content: chunk {key.hex()[:16]}" in text
    code, text = run("fsck", str(path), "--deep", "--json")
    assert code == 1
    (finding,) = json.loads(text)["findings"]
    assert (finding["kind"], finding["place"]) == ("content", key.hex())
    code, text = run("fsck", str(path), "--deep", "--repair")
    assert code == 0
    assert "1 findings, 1 repaired" in text
    assert run("fsck", str(path), "--deep")[0] == 0


def test_fsck_rebuilds_a_lost_index_only_when_told_to(path: Path) -> None:
    damage.lose_index(path)
    code, text = run("fsck", str(path))
    assert code == 1
    assert text.startswith("index: ")
    assert run("fsck", str(path), "--repair")[0] == 0
    assert usage(path)["live_chunks"] == CHUNKS


def test_fsck_exits_with_2_where_it_cannot_look(path: Path) -> None:
    (path / "kvtier.json").write_text('{"format": 99}')  # of a newer kvtier
    code, _ = run("fsck", str(path))
    assert code == 2


@pytest.mark.root
def test_fsck_checks_the_checkpoint_and_says_its_age_where_the_store_is_out_of_reach(path: Path) -> None:
    damage.using(path, damage.flipped(keys_of(7, 1)[0]))
    mounts.run("mount", "--bind", path, path)
    mounts.run("mount", "-o", "remount,bind,ro", path)
    try:
        for options, code in ([], 0), (["--deep"], 1):
            result = CliRunner().invoke(app, ["fsck", str(path), *options])
            assert result.exit_code == code, result.output
            assert re.search(r"Read-only.*\nshowing its checkpoint, \d+s old", result.stderr)
        assert run("fsck", str(path), "--deep", "--repair")[0] == 2
    finally:
        mounts.run("umount", path)
