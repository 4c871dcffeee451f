"""`kvtier du|ls|rm|fsck` on real stores: whole, damaged, and while a tier has them open."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import damage
import mounts
import pytest
from nvme_rig import CHUNK_BYTES, keys_of, opened, right, stored
from typer.testing import CliRunner

from kvtier.factory.cli.app import app, main
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier

CHUNKS = 40


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def run_json(*arguments: str) -> Any:
    code, output = run(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def with_tier(path: Path, work: Callable[[NvmeTier], Awaitable[object]], **changes: Any) -> None:
    async def whole() -> None:
        tier = await opened(path, **changes)
        try:
            await work(tier)
        finally:
            await tier.close()

    asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 chunks, of which 10 were read back."""
    path = tmp_path / "store"

    async def fill(tier: NvmeTier) -> None:
        await stored(tier, keys_of(0, CHUNKS))
        await right(tier, keys_of(0, 10))

    with_tier(path, fill)
    return path


def test_du_tells_what_was_ever_of_use(path: Path) -> None:
    found = run_json("du", str(path))
    assert found["live_chunks"] == CHUNKS
    assert found["live_bytes"] == CHUNKS * CHUNK_BYTES
    assert found["useful_bytes"] == 10 * CHUNK_BYTES
    # The mark that the store is in use is a file of its own while we look.
    assert found["allocated_bytes"] - allocated_bytes(path) in (0, BLOCK_BYTES)
    assert sum(found["parts"].values()) <= found["allocated_bytes"]
    code, text = run("du", str(path))
    assert code == 0
    assert "160KiB (25.0 %)" in text


def test_ls_shows_each_namespace_and_its_fields(path: Path) -> None:
    other = Identity({"model": "other", "dtype": "float16"})
    with_tier(path, lambda tier: stored(tier, keys_of(0, 3)), identity=other)
    found = {one["label"]: one for one in run_json("ls", str(path))}
    assert {label: one["chunks"] for label, one in found.items()} == {"m": CHUNKS, "other": 3}
    assert found["m"]["never_read_chunks"] == CHUNKS - 10
    assert found["m"]["hits"] == 10
    assert found["other"]["fields"] == {"model": "other", "dtype": "float16"}
    code, text = run("ls", str(path))
    assert code == 0
    assert "float16" not in text
    assert found["m"]["digest"][:12] in text, "as much as rm needs, on a narrow terminal too"
    code, text = run("ls", str(path), "--fields")
    assert code == 0
    assert "float16" in text


def test_ls_says_in_which_fields_two_namespaces_of_one_model_differ(path: Path) -> None:
    other = Identity({"model": "m", "dtype": "float16", "tp": "2"})
    with_tier(path, lambda tier: stored(tier, keys_of(0, 3)), identity=other)
    code, text = run("ls", str(path))
    assert code == 0
    after = text[text.index("where those of its name differ") :]
    assert "bfloat16" in after
    assert "float16" in after
    assert "model" not in after


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
    assert run_json("du", str(path))["live_chunks"] == left
    assert found["removed"] == ("--dry-run" not in options)


def test_what_rm_removed_stays_away_when_the_index_is_lost(path: Path) -> None:
    run_json("rm", str(path), "--never-read")
    damage.lose_index(path)
    assert run_json("du", str(path))["live_chunks"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to remove"),
        (["--key-prefix", "xyz"], "--key-prefix: should be whole bytes in hex"),
        (["--older-than", "soon"], "--older-than: should be a number and s, m, h or d"),
        (["--namespace", "", "--never-read"], "--namespace: is empty"),
        (["--older-than", "", "--all"], "--older-than: is empty"),
    ],
)
def test_rm_refuses_what_it_cannot_understand(path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rm", str(path), *options])
    assert message in str(result.exception)


@pytest.mark.parametrize("command", [["du"], ["ls"], ["rm", "--all"], ["fsck"]])
def test_a_path_without_a_store_is_one_message_and_wrong_input(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kvtier", *command, str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path} is no store: it has no kvtier.json\n"
    assert list(tmp_path.iterdir()) == []


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
    assert "1 findings, 1 mended" in text
    assert run("fsck", str(path), "--deep")[0] == 0


def test_fsck_rebuilds_a_lost_index_only_when_told_to(path: Path) -> None:
    damage.lose_index(path)
    code, text = run("fsck", str(path))
    assert code == 1
    assert text.startswith("index: ")
    assert run("fsck", str(path), "--repair")[0] == 0
    assert run_json("du", str(path))["live_chunks"] == CHUNKS


def test_fsck_exits_with_2_where_it_cannot_look(path: Path) -> None:
    path.chmod(0o755)  # anybody could have written to it
    code, _ = run("fsck", str(path))
    assert code == 2


def test_all_four_work_while_a_server_has_the_directory_open(path: Path) -> None:
    async def work(tier: NvmeTier) -> None:
        for command in (["du"], ["ls"], ["fsck", "--deep", "--repair"], ["rm", "--never-read"]):
            code, output = await asyncio.to_thread(run, command[0], str(path), *command[1:])
            assert code == 0, output
        assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, 10)

    with_tier(path, work)


@pytest.mark.root
def test_du_and_ls_show_the_checkpoint_and_its_age_where_the_store_is_out_of_reach(path: Path) -> None:
    mounts.run("mount", "--bind", path, path)
    mounts.run("mount", "-o", "remount,bind,ro", path)
    try:
        for command in ("du", "ls"):
            result = CliRunner().invoke(app, [command, str(path)])
            assert result.exit_code == 0, result.output
            assert re.search(r"Read-only.*\nthis is its checkpoint, \d+s old", result.stderr)
        assert run("rm", str(path), "--all")[0] != 0
    finally:
        mounts.run("umount", path)
    assert run_json("du", str(path))["live_chunks"] == CHUNKS
