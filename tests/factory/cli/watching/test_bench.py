from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_cli import run_json

from kvtier.factory.sizing.measured import remembered
from kvtier.tiers.nvme.admin import drill
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.mark import read_mark, write_mark

Run = Callable[..., tuple[int, str, str]]

SHORT = ("--seconds", "0.5", "--chunk-bytes", "1MiB")


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "CAPACITY_BYTES_MAX", drill.CAPACITY_BYTES_MIN)


@pytest.fixture
def file(file: Path) -> Path:
    """A document whose drive may be as full as it likes."""
    file.write_text(file.read_text().replace('"1GiB"', "0").replace("2TiB", "64MiB"))
    return file


def test_a_drive_is_measured_and_every_byte_is_right(run: Run, file: Path, tmp_path: Path) -> None:
    status, output, errors = run("bench", file, *SHORT)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(tmp_path / "store")
    assert lines[2].split()[0] == "1MiB"
    assert lines[3].endswith(" chunks compared, 0 wrong")
    assert list(tmp_path.glob(".kvtier-bench-*")) == []
    assert not (tmp_path / "store").exists()


def test_sizes_are_compared_and_the_result_is_remembered(run: Run, file: Path, tmp_path: Path) -> None:
    status, output, _ = run("bench", file, "--seconds", "0.6", "--json")
    document = json.loads(output)
    assert (status, document["command"], document["version"]) == (0, "bench", 1)
    (drive,) = document["drives"]
    assert [one["chunk_bytes"] for one in drive["runs"]] == [256 << 10, 1 << 20, 4 << 20]
    if not all(one["is_direct"] for one in drive["runs"]):
        pytest.skip("needs direct I/O")
    assert drive["recommended_load_deadline_s"] >= 10
    measured = remembered(tmp_path)
    assert measured is not None
    assert measured.chunk_bytes == drive["recommended_chunk_bytes"]


def test_without_direct_io_there_is_no_figure_of_loads(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "direct", False)
    status, output, _ = run("bench", file, *SHORT)
    assert (status, output.splitlines()[2].split()[3:5]) == (0, ["-", "-"])
    assert "without direct I/O" in output
    assert remembered(tmp_path) is None


def test_wrong_bytes_are_status_one(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = Files.preadv

    def flipped(self: Files, fd: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(self, fd, buffers, offset)
        if sum(map(len, buffers)) >= 1 << 20:
            buffers[-1][-1] ^= 1
        return count

    monkeypatch.setattr(Files, "preadv", flipped)
    status, output, _ = run("bench", file, *SHORT)
    assert (status, "failed: corrupt" in output) == (1, True)


def test_a_store_is_left_alone_and_it_is_told_that_somebody_has_it_open(
    run: Run, path: Path, file: Path
) -> None:
    before = run_json("ls", str(path))
    assert run("bench", file, *SHORT)[::2] == (0, "")
    assert run_json("ls", str(path)) == before
    mark = read_mark(path)
    assert mark is not None
    write_mark(Files(), path, replace(mark, closed=False))
    status, _, errors = run("bench", file, *SHORT)
    assert (status, errors.startswith(f"{path} is in use: ")) == (0, True)


def test_what_cannot_be_measured_is_a_message(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drill, "CAPACITY_BYTES_MIN", 1 << 60)
    status, output, errors = run("bench", file, *SHORT)
    assert (status, output, "above the reserve" in errors) == (2, "", True)
    mistyped = tmp_path / "absent.json"
    assert run("bench", mistyped, *SHORT) == (2, "", f"{mistyped}: no such file or directory\n")
    assert run("bench", "/dev/null")[::2] == (2, "/dev/null is neither a directory nor a document\n")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "tiers": document["tiers"][:2]}))
    assert run("bench", file, *SHORT)[::2] == (2, "tiers: there is no nvme tier in it to measure\n")
    assert list(tmp_path.glob(".kvtier-bench-*")) == []


def test_an_interrupt_leaves_nothing(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvtier.factory", "bench", str(file), "--seconds", "60", *SHORT[2:]]
    read_fd, write_fd = os.pipe()
    # It says when it has stored something: a fork of this very interpreter could not be interrupted alone.
    code = (
        "import os, sys\n"
        "from kvtier.tiers.nvme.admin import drill\n"
        "drill.CAPACITY_BYTES_MAX = drill.CAPACITY_BYTES_MIN\n"
        "store = drill._Drill._store\n"
        "async def told(*arguments):\n"
        "    done = await store(*arguments)\n"
        f"    os.write({write_fd}, b'.')\n"
        "    return done\n"
        "drill._Drill._store = told\n"
        f"sys.argv[1:] = {command[3:]!r}\n"
        "from kvtier.factory.cli.app import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[write_fd], stderr=subprocess.PIPE, text=True
    )
    os.close(write_fd)
    try:
        assert os.read(read_fd, 1) == b"."
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(read_fd)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert list(tmp_path.glob(".kvtier-bench-*")) == []
