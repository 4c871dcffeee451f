from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kvtier.factory.config import load_config
from kvtier.factory.machine import guess
from kvtier.factory.machine.guess import Volume

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made.json"


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only drive of this machine."""
    point = tmp_path / "drive"
    point.mkdir()
    monkeypatch.setattr(guess, "volumes", lambda _: [Volume(point, "/dev/nvme0n1", 1 << 40, 1 << 39)])
    return point


def tiers_of(file: Path) -> list[dict[str, object]]:
    tiers: list[dict[str, object]] = json.loads(file.read_text())["tiers"]
    return tiers


def test_guesses_make_a_document_that_check_takes(run: Run, made: Path, drive: Path) -> None:
    status, output, _ = run("init", made, "--yes", "--nvme-capacity", "64MiB")
    assert status == 0
    assert f"nvme: {drive}/kvtier (most free space of all drives, 512GiB on /dev/nvme0n1)" in output
    assert output.splitlines()[-1].startswith(f"{made} is written. Next: kvtier explain {made}")
    gpu, pinned, nvme = tiers_of(made)
    assert (gpu["type"], pinned["type"], nvme["path"]) == ("gpu", "pinned", str(drive / "kvtier"))
    assert run("check", made)[0] == 0
    assert not (drive / "kvtier").exists()


def test_answers_on_the_command_line_are_taken_as_they_are(run: Run, made: Path, drive: Path) -> None:
    status, output, _ = run("init", made, "--pinned", "32MiB", "--nvme", "none")
    assert status == 0
    assert output.splitlines()[:2] == ["pinned: 32MiB (as given)", "nvme: none (as given)"]
    assert tiers_of(made) == [{"type": "gpu"}, {"type": "pinned", "capacity": "32MiB"}]


def test_a_machine_without_a_drive_gets_no_nvme_tier(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guess, "volumes", lambda _: [])
    status, output, _ = run("init", made, "--json", "--pinned", "32MiB")
    document = json.loads(output)
    assert (status, document["command"], document["document"]) == (0, "init", json.loads(made.read_text()))
    assert document["reasons"]["nvme"].startswith("no drive is mounted")


def test_a_drive_in_a_place_of_its_own_must_be_mounted_there(run: Run, made: Path) -> None:
    status, _, errors = run(
        "init", made, "--pinned", "32MiB", "--nvme", "/dev/shm/kvtier", "--nvme-capacity", "64MiB"
    )
    assert (status, "in memory" in errors) == (0, True)
    assert tiers_of(made)[2]["mount"] == "/dev/shm"
    assert not Path("/dev/shm/kvtier").exists()


def test_a_file_is_never_overwritten_unless_that_is_asked_for(run: Run, made: Path) -> None:
    made.write_text("mine")
    options = ("--pinned", "32MiB", "--nvme", "none")
    status, output, errors = run("init", made, *options)
    assert (status, output, "is there already" in errors) == (2, "", True)
    assert made.read_text() == "mine"
    assert run("init", made, *options, "--force")[0] == 0
    load_config(made)


def test_of_a_link_the_file_is_replaced(run: Run, made: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("mine")
    made.symlink_to(real)
    assert run("init", made, "--pinned", "32MiB", "--nvme", "none", "--force")[0] == 0
    assert made.is_symlink()
    load_config(real)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (("--pinned", "lots"), "tiers[1].capacity: "),
        (("--nvme", "/proc/kvtier"), "tiers[2].path: "),
        (("--nvme-capacity", "64GB!"), "tiers[2].capacity: "),
        (("--nvme", ""), "--nvme: is empty; "),
        (("--pinned", ""), "--pinned: is empty; "),
        (("--nvme-capacity", ""), "--nvme-capacity: is empty; "),
        (("--nvme", "none"), "--nvme-capacity: there is no drive"),
    ],
)
def test_what_check_would_refuse_is_not_written(
    run: Run, made: Path, drive: Path, options: tuple[str, str], place: str
) -> None:
    given = {"--pinned": "32MiB", "--nvme-capacity": "64MiB"} | {options[0]: options[1]}
    status, output, errors = run("init", made, *(part for pair in given.items() for part in pair))
    assert (status, output, errors.startswith(place)) == (2, "", True), errors
    assert list(made.parent.glob("*made.json*")) == []


def test_a_folder_that_cannot_be_written_is_a_message(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("init", tmp_path / "no" / "x.json", "--pinned", "32MiB", "--nvme", "none")
    assert (status, "cannot be written" in errors) == (2, True)


def test_a_terminal_is_asked_with_the_guess_as_the_default(made: Path, tmp_path: Path) -> None:
    ours, its = os.openpty()
    command = [sys.executable, "-m", "kvtier.factory", "init", str(made), "--nvme", str(tmp_path / "store")]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its)
    os.close(its)
    try:
        os.write(ours, b"32MiB\n64MiB\n")
        said = b""
        with suppress(OSError):  # the terminal is gone with its last user
            while part := os.read(ours, 4096):
                said += part
        assert process.wait(60) == 0, said
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Capacity of the pinned tier [" in said
    assert b"Capacity of the nvme tier [80%]" in said
    _, pinned, nvme = tiers_of(made)
    assert (pinned["capacity"], nvme["capacity"]) == ("32MiB", "64MiB")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_only_a_regular_file_is_replaced(run: Run, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nothing")
    before = os.lstat(file)
    status, _, errors = run("init", file, "--yes", "--pinned", "64MiB", "--nvme", "none", "--force")
    assert (status, errors) == (2, f"{file} is not a regular file; choose another name\n")
    assert os.path.samestat(os.lstat(file), before)


def test_a_link_to_nothing_is_there_already(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "odd"
    file.symlink_to("nothing")
    status, _, errors = run("init", file, "--yes", "--pinned", "64MiB", "--nvme", "none")
    assert (status, file.is_symlink()) == (2, True)
    assert "is there already" in errors
