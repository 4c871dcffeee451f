from __future__ import annotations

from pathlib import Path

import damage
import pytest
from store_cli import CHUNKS, run_json, usage
from typer.testing import CliRunner

from kvtier.factory.cli.app import app


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--never-read"], 10),
        (["--key-prefix", b"chunk-000000003".hex()], CHUNKS - 10),
        (["--namespace", "m"], 0),
        (["--namespace", "nobody's"], CHUNKS),
        (["--older-than", "1h"], CHUNKS),
        (["--namespace", "m", "--never-read", "--dry-run"], CHUNKS),
        (["--all"], 0),
    ],
)
def test_rm_removes_what_all_options_name_and_no_more(path: Path, options: list[str], left: int) -> None:
    found = run_json("rm", str(path), *options)
    assert usage(path)["live_chunks"] == left
    assert found["dry_run"] == ("--dry-run" in options)


def test_what_rm_removed_stays_away_when_the_index_is_lost(path: Path) -> None:
    run_json("rm", str(path), "--never-read")
    damage.lose_index(path)
    assert usage(path)["live_chunks"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to remove"),
        (["--key-prefix", "xyz"], "--key-prefix: should be pairs of hex digits"),
        (["--older-than", "soon"], "--older-than: should be a number with the unit s, m, h or d"),
        (["--namespace", "", "--never-read"], "--namespace: is empty"),
        (["--older-than", "", "--all"], "--older-than: is empty"),
    ],
)
def test_rm_refuses_what_it_cannot_understand(path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rm", str(path), *options])
    assert message in str(result.exception)
