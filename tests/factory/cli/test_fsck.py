from __future__ import annotations

import json
from pathlib import Path

import damage
from nvme_rig import keys_of
from store_cli import CHUNKS, run, run_json


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
    assert run_json("du", str(path))["live_chunks"] == CHUNKS


def test_fsck_exits_with_2_where_it_cannot_look(path: Path) -> None:
    (path / "kvtier.json").write_text('{"format": 99}')  # of a newer kvtier
    code, _ = run("fsck", str(path))
    assert code == 2
