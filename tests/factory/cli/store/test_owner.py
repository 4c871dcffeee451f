"""Root looks at a store of another user as that user, and leaves nothing of its own in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from store_cli import CHUNKS, fill, run, run_json, usage
from typer.testing import CliRunner

from kvtier.factory.cli.app import app
from kvtier.factory.cli.store.owner import as_owner
from kvtier.tiers import TierUnavailable

USER = 65_534  # nobody, on every Linux

pytestmark = pytest.mark.root

# A server of that user's. It imports as root: the interpreter may lie where only root may read.
SERVER = f"""
import os, sys
from store_cli import keys_of, opened, right, with_tier
from kvtier.factory.cli.store import owner
owner._become({USER}, {USER}, [])

async def serve(tier):
    print("serving", flush=True)
    sys.stdin.read()

with_tier(__import__("pathlib").Path(sys.argv[1]), serve)
"""


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A store of that user's, where everybody may go."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to look at what another user has")
    top = Path(tempfile.mkdtemp(prefix="kvtier-owner-"))
    try:
        top.chmod(0o755)
        fill(top / "store")
        mounts.run("chown", "-R", f"{USER}:{USER}", top / "store")
        yield top / "store"
    finally:
        shutil.rmtree(top)


def owners(path: Path) -> set[int]:
    return {one.lstat().st_uid for one in (path, *path.rglob("*"))}


def test_root_may_look_and_leaves_nothing_of_its_own(foreign: Path) -> None:
    assert usage(foreign)["live_chunks"] == CHUNKS
    assert [one["label"] for one in run_json("ls", str(foreign))["namespaces"]] == ["m"]
    assert run("fsck", str(foreign), "--deep")[0] == 0
    assert owners(foreign) == {USER}
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_root_may_look_while_a_server_of_that_user_runs(foreign: Path) -> None:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SERVER, str(foreign)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=path, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n"
        result = CliRunner().invoke(app, ["du", str(foreign), "--json"])
        assert (result.exit_code, result.stderr) == (0, ""), "its index, and no checkpoint"
    assert server.returncode == 0
    assert owners(foreign) == {USER}


def test_root_may_look_at_a_read_only_mount(foreign: Path) -> None:
    mounts.run("mount", "--bind", foreign, foreign)
    mounts.run("mount", "-o", "remount,bind,ro", foreign)
    try:
        result = CliRunner().invoke(app, ["du", str(foreign)])
        assert (result.exit_code, "showing its checkpoint" in result.stderr) == (0, True)
    finally:
        mounts.run("umount", foreign)


@pytest.mark.parametrize("command", [["rm", "--never-read"], ["fsck", "--repair"]])
def test_root_may_not_change_it(foreign: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, [command[0], str(foreign), *command[1:]])
    assert result.exit_code != 0
    assert f"belongs to user {USER}" in result.stderr + str(result.exception)


def test_a_directory_that_the_owner_may_not_enter_is_named(foreign: Path) -> None:
    foreign.parent.chmod(0o700)
    with (
        pytest.raises(TierUnavailable, match=f"user {USER}, who may not enter {foreign.parent}"),
        as_owner(foreign),
    ):
        pass
    assert os.geteuid() == 0
