"""A short soak: nothing is wrong, what is wrong is found, and an interrupt leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from soak_process import GROWTH_LEAST_S, Member, Sample

from kvtier.tiers.nvme.index.memory import OWNER, SHARED_MEMORY

ROOT = Path(__file__).parents[2]
SOAK = ROOT / "tools" / "soak.py"

# Runs the soak with a folder that serves another byte now and then; all processes are forks of this one.
SABOTAGED = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import soak_folder
load = soak_folder.Folder._load
def sabotaged(self, keys, buffers):
    failed = load(self, keys, buffers)
    buffers[0][0] ^= 1
    return failed
soak_folder.Folder._load = sabotaged
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.skipif(not SOAK.exists(), reason="the tools are not part of the package")


@pytest.mark.slow
def test_a_short_soak_finds_nothing_wrong(tmp_path: Path) -> None:
    summary = tmp_path / "soak.json"
    command: list[str | Path] = [
        sys.executable,
        SOAK,
        "--seconds",
        "12",
        "--path",
        tmp_path,
        "--json",
        summary,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(summary.read_text())
    assert result["wrong"] == []
    assert result["checked"] == result["worlds"] >= 2
    assert min(result[name] for name in ("stored", "true_flushes", "starts")) > 0
    assert list(tmp_path.iterdir()) == [summary]


@pytest.mark.slow
def test_a_wrong_byte_is_found_and_the_seed_is_named(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", SABOTAGED, ROOT / "tests" / "support"]
    command += [SOAK, "--seconds", "30", "--seed", "7", "--path", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "wrong bytes for" in ended.stdout
    assert "--seed 7" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    command: list[str | Path] = [sys.executable, SOAK, "--path", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as soak:
        assert soak.stdout is not None
        lines = iter(soak.stdout)
        assert "seed" in next(lines)
        assert " stored" in next(lines), "the line of progress: it is in the middle of its work"
        os.kill(soak.pid, number)
        assert "true_flushes" in "".join(lines), "it tells what it has done so far"
        assert soak.wait() == 130
    assert list(tmp_path.iterdir()) == []
    owners = SHARED_MEMORY.glob(f"kvtier-index-*/{OWNER}")
    assert not [owner for owner in owners if owner.read_text().startswith(f"{tmp_path}/")]


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_found_wrong(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", SABOTAGED, ROOT / "tests" / "support"]
    command += [SOAK, "--seed", "7", "--path", tmp_path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as soak:
        assert soak.stdout is not None
        assert soak.stderr is not None
        assert any(line.startswith("WRONG") for line in soak.stdout)
        os.kill(soak.pid, signal.SIGINT)
        assert "is kept" in soak.stderr.read()
        assert soak.wait() == 1
    assert list(tmp_path.iterdir()) != []


@pytest.mark.slow
def test_other_indexes_in_shared_memory_are_left_alone(tmp_path: Path) -> None:
    owner = SHARED_MEMORY / "kvtier-index-0-soak-test" / OWNER
    owner.parent.mkdir()
    try:
        owner.write_bytes(os.fsencode(tmp_path) + b"/\xff\n")  # no text
        command: list[str | Path] = [sys.executable, SOAK, "--seconds", "0", "--path", tmp_path]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert owner.exists()
    finally:
        owner.unlink()
        owner.parent.rmdir()


def test_what_is_promised_holds_until_it_is_taken_back() -> None:
    member = Member(0, mortal=True)
    member.hear({"durable": ["a", "b", "c"]})
    member.hear({"removing": ["a"]})
    member.hear({"removed": ["a"]})
    assert (member.durable, member.gone) == ({"b", "c"}, {"a"})
    member.hear({"storing": ["a"]})
    assert (member.durable, member.gone) == ({"b", "c"}, set())
    member.hear({"forgetting": True})
    assert (member.durable, member.gone) == (set(), set())


def test_memory_that_grows_for_half_of_a_life_is_told_from_what_is_made_once() -> None:
    member = Member(0, mortal=False)
    life_s = 2 * GROWTH_LEAST_S
    steady = [Sample(at * life_s / 50, 1000 + min(at, 20) * 50) for at in range(51)]
    member.samples = steady
    assert member.growth_bytes_per_min() == pytest.approx(0)
    member.samples = [sample._replace(own_bytes=int(100 * sample.at_s)) for sample in steady]
    assert member.growth_bytes_per_min() == pytest.approx(6000, rel=0.01)
    member.samples = steady[:20]
    assert member.growth_bytes_per_min() is None
