"""What `make gpu-check` runs on which machine; the programs that it calls are stand-ins that say how."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "gpu_check.sh"

PYTHON = """#!/bin/sh
case "$*" in
    *"import numpy, torch"*) exit {lacks_torch} ;;
    *is_available*) exit {lacks_gpu} ;;
esac
echo "python $@"
exit {check_fails}
"""

SANITIZER = '#!/bin/sh\necho "sanitizer $@"\n'

pytestmark = pytest.mark.skipif(not CHECK.exists(), reason="the tools are not part of the package")


def run(
    folder: Path, *arguments: str, lacks_torch: int = 0, lacks_gpu: int = 0, check_fails: int = 0
) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    answers = {"lacks_torch": lacks_torch, "lacks_gpu": lacks_gpu, "check_fails": check_fails}
    made(python, PYTHON.format(**answers))
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command: list[str | Path] = [CHECK, python, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def made(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_without_torch_it_says_what_to_choose(tmp_path: Path) -> None:
    ended = run(tmp_path, lacks_torch=1)
    assert ended.returncode == 1
    assert "choose another: make gpu-check PYTHON=..." in ended.stderr


def test_without_a_gpu_it_says_so_and_runs_the_part_that_needs_none(tmp_path: Path) -> None:
    made(tmp_path / "compute-sanitizer", SANITIZER)
    ended = run(tmp_path, "--quick", lacks_gpu=1)
    assert ended.returncode == 0
    said, ran = ended.stdout.splitlines()
    assert said.startswith("no GPU was found")
    assert ran.endswith("benchmarks/device.py --device cpu --quick")


def test_with_a_gpu_the_round_trips_run_again_under_memcheck(tmp_path: Path) -> None:
    made(tmp_path / "compute-sanitizer", SANITIZER)
    ended = run(tmp_path, "--json", "file")
    assert ended.returncode == 0
    check, _, sanitized = ended.stdout.splitlines()
    assert check.endswith("benchmarks/device.py --json file")
    assert sanitized.startswith("sanitizer --tool memcheck")
    assert sanitized.endswith("benchmarks/device.py --device cuda --quick --round-trips-only")


@pytest.mark.skipif(Path("/usr/local/cuda/bin/compute-sanitizer").exists(), reason="it is found")
def test_without_the_sanitizer_it_says_so(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == "compute-sanitizer was not found: no memcheck"


def test_a_round_trip_that_differs_is_not_covered_up_by_a_clean_memcheck(tmp_path: Path) -> None:
    made(tmp_path / "compute-sanitizer", SANITIZER)
    assert run(tmp_path, check_fails=1).returncode == 1
    assert run(tmp_path, lacks_gpu=1, check_fails=1).returncode == 1
