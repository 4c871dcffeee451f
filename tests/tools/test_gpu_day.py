"""The day with a GPU, rehearsed without one: both calls run through, and leave what they have found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

DAY = Path(__file__).parents[2] / "tools" / "gpu_day.sh"

pytestmark = pytest.mark.skipif(not DAY.exists(), reason="the tools are not part of the package")


def run(call: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "QUICK": "1", **settings}
    return subprocess.run([DAY, call, folder], capture_output=True, text=True, check=False, env=environment)


def results(folder: Path) -> dict[str, Any]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.mark.slow
def test_the_comparisons_run_through_and_all_bytes_are_equal(tmp_path: Path) -> None:
    ended = run("correctness", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = results(tmp_path)
    assert set(found) == {"round-trips", "failing"}
    assert found["round-trips"]["round_trips"]["wrong"] == []
    assert found["round-trips"]["engine"]["loaded"] > found["round-trips"]["engine"]["wrong"] == 0
    assert found["failing"]["good"]
    assert "submit" not in found["round-trips"]


@pytest.mark.slow
def test_the_figures_are_all_there(tmp_path: Path) -> None:
    ended = run("figures", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = results(tmp_path)
    assert set(found) == {"copies", "drive", "registration"}
    assert found["copies"]["submit"]
    assert found["drive"]["is_equal"]
    assert found["drive"]["of_drive"] > 0
    (size,) = found["registration"]["sizes"]
    assert size["touched_mib"] == size["mib"]


def test_a_call_without_time_left_says_so_and_ends(tmp_path: Path) -> None:
    ended = run("figures", tmp_path, LIMIT_S="0")
    assert ended.returncode == 1
    assert (tmp_path / "parts.txt").read_text().count("no time was left") == 3


def test_what_is_needed_comes_from_the_wheels_that_were_carried(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sitecustomize.py", "print('carried')")
    run("correctness", tmp_path / "out", WHEELS=str(wheels), QUICK="1", LIMIT_S="5")
    assert "carried" in (tmp_path / "out" / "round-trips.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_runs_and_leaves_no_files_of_its_own(
    tmp_path: Path, number: signal.Signals
) -> None:
    python, pid, temporary = tmp_path / "python", tmp_path / "pid", tmp_path / "temporary"
    temporary.mkdir()
    python.write_text(f"#!/bin/sh\necho $$ >{pid}.new\nmv {pid}.new {pid}\nexec sleep 60\n")
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "TMPDIR": str(temporary)}
    # A shell does not heed what was ignored before it, as it is for tests that run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        day = subprocess.Popen([DAY, "figures", tmp_path / "out"], env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with day:
        while not pid.exists():
            time.sleep(0.01)
        day.send_signal(number)
        assert day.wait(10) == 130
    assert not Path("/proc", pid.read_text().strip()).exists()
    assert list(temporary.iterdir()) == []


def test_another_word_is_refused(tmp_path: Path) -> None:
    ended = run("everything", tmp_path)
    assert ended.returncode == 2
    assert "correctness or figures" in ended.stderr
