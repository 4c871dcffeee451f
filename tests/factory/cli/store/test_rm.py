from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import damage
import pytest
from nvme_rig import CHUNK_BYTES, keys_of, stored
from store_cli import CHUNKS, run_json, usage, with_tier
from typer.testing import CliRunner

from kvtier.factory.cli.app import app
from kvtier.tiers.nvme.store.namespaces import Identity


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--never-read"], 10),
        (["--key-prefix", b"chunk-000000003".hex()], CHUNKS - 10),
        (["--namespace", "m"], 0),
        (["--namespace", "m", "--never-read", "--dry-run"], CHUNKS),
        (["--all", "--yes"], 0),
        (["--free", "1B"], CHUNKS - 1),
        (["--namespace", "m", "--free", "64KiB", "--lru"], CHUNKS - 64 // 16),
        (["--free", "1TiB"], 0),
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
        (["--older-than", "", "--all", "--yes"], "--older-than: is empty"),
        (["--all"], "--all: nobody is there to be asked; add --yes"),
        (["--lru", "--never-read"], "--lru: goes together with --free"),
        (["--free", "10%"], "--free: should be a size like"),
        (["--free", ""], "--free: is empty"),
    ],
)
def test_rm_refuses_what_it_cannot_understand(path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rm", str(path), *options])
    assert message in str(result.exception)


@pytest.mark.parametrize("options", [["--namespace", "nobody's"], ["--older-than", "1h"]])
def test_where_nothing_matches_the_answer_is_no(path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["rm", str(path), *options])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "nothing matches\n")
    result = CliRunner().invoke(app, ["rm", str(path), *options, "--json"])
    assert (result.exit_code, json.loads(result.stdout)["chunks"]) == (1, 0)
    assert usage(path)["live_chunks"] == CHUNKS


def test_what_was_used_lately_outlives_what_was_not(path: Path) -> None:
    """Of forty chunks, the first ten were read."""
    run_json("rm", str(path), "--free", f"{(CHUNKS - 10) * CHUNK_BYTES}B", "--lru")
    assert (usage(path)["live_chunks"], usage(path)["useful_bytes"]) == (10, 10 * CHUNK_BYTES)


@pytest.mark.parametrize(
    ("answer", "status", "left"), [(b"n\n", 1, CHUNKS), (b"y\n", 0, 0), (b"\x04", 1, CHUNKS)]
)
def test_on_a_terminal_it_asks_first(path: Path, answer: bytes, status: int, left: int) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard:
        keyboard.write(answer)
        command = [sys.executable, "-m", "kvtier.factory", "rm", str(path), "--all"]
        ended = subprocess.run(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, check=False)
        shown = os.read(ours, 4096).decode()
        os.close(theirs)
    assert ended.returncode == status, shown
    assert "Remove 40 chunks (640KiB) of 1 namespace? [y/N]" in shown
    assert usage(path)["live_chunks"] == left


def test_a_label_never_moves_the_cursor(tmp_path: Path) -> None:
    odd = Identity({"model": "m"}, "\x1b[2Jmine\nremoved 9 chunks")
    with_tier(tmp_path / "store", lambda tier: stored(tier, keys_of(0, 1)), identity=odd)
    done = CliRunner().invoke(app, ["rm", str(tmp_path / "store"), "--all", "--yes"])
    assert done.exit_code == 0
    assert done.output.startswith("\\x1b[2Jmine\\nremoved 9 chunks ")
