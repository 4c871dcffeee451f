"""What is installed is what is in the folders, and the source distribution is the whole repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_FOLDERS = ("tiers", "factory", "engine")

# Environments, caches and what builds leave.
NOT_IN_REPOSITORY = {
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".venv",
    ".venv-docs",
    ".venv-light",
    "PKG-INFO",
    "__pycache__",
    "build",
    "dist",
    "kvtier.egg-info",
    "kvtier_core.egg-info",
    "setup.cfg",
}


def modules_on_disk() -> set[str]:
    return {
        str(path.relative_to(ROOT)) for folder in PACKAGE_FOLDERS for path in (ROOT / folder).rglob("*.py")
    }


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {"kvtier." + str(Path(name).parent).replace("/", ".") for name in modules_on_disk()}


def project(folder: str) -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return described


def test_kvtier_is_the_core_of_the_same_version_and_what_the_core_leaves_out() -> None:
    core, whole = project("."), project("packaging/kvtier")
    assert whole["version"] == core["version"]
    assert whole["dependencies"] == [f"{core['name']}[torch]=={core['version']}"]
    needed = {re.split(r"\W", line)[0] for line in core["dependencies"]}
    assert not needed & {"torch", "numpy"}, "the command line does without"
    assert core["optional-dependencies"]["torch"][0] == "torch>=2.9", "open: a server has its own"


def checkout(target: Path) -> Path:
    """A copy of the repository as it would be committed: setuptools leaves its work beside the sources."""
    for name in files_of_the_repository():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def files_of_the_repository() -> list[str]:
    if not (ROOT / ".git").exists():  # the unpacked source distribution
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [str(name) for name in names if not set(name.parts) & NOT_IN_REPOSITORY]
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in output.split("\0") if name and (ROOT / name).is_file()]


def built(kind: str, source: Path, target: Path) -> Path:
    """A wheel or a source distribution of the checkout at `source`."""
    command = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        str(target),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = target.iterdir()
    return archive


def test_a_wheel_has_every_module_and_the_type_markers(tmp_path: Path) -> None:
    pytest.importorskip("build")
    wheel = built("wheel", checkout(tmp_path / "checkout"), tmp_path / "dist")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"kvtier/{name}" for name in modules_on_disk()} <= names
    assert {f"kvtier/{folder}/py.typed" for folder in PACKAGE_FOLDERS} <= names
    assert not [name for name in names if name.startswith(("tests/", "kvtier/tests/", "packaging/"))]


def test_the_wheel_of_the_whole_holds_no_code(tmp_path: Path) -> None:
    pytest.importorskip("build")
    wheel = built("wheel", checkout(tmp_path / "checkout") / "packaging" / "kvtier", tmp_path / "dist")
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"kvtier-0.1.0.dist-info"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("sdist")
    archive = built("sdist", checkout(folder / "checkout"), folder / "dist")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (root,) = (folder / "unpacked").iterdir()
    return root


@pytest.mark.slow
def test_the_source_distribution_has_every_file_of_the_repository(unpacked: Path) -> None:
    missing = [name for name in files_of_the_repository() if not (unpacked / name).is_file()]
    assert not missing, "add them to MANIFEST.in"
    scripts = [name for name in files_of_the_repository() if os.access(ROOT / name, os.X_OK)]
    assert not [name for name in scripts if not os.access(unpacked / name, os.X_OK)]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["lint", "test-fast", "test", "gpu-check", "bench-nvme", "demo", "crash"])
def test_targets_resolve_in_the_source_distribution(unpacked: Path, target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    planned = subprocess.run(
        ["make", "-n", target], cwd=unpacked, env=environment, capture_output=True, text=True, check=True
    ).stdout
    named = re.findall(r"(?:benchmarks|examples|requirements|tests|tools)/[\w./-]+", planned)
    written = {"benchmarks/results/nvme.json"}
    assert not [path for path in named if path not in written and not (unpacked / path).exists()]


@pytest.mark.slow
def test_gpu_check_finds_its_program_in_the_source_distribution(unpacked: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"  # one without a GPU, which says what it is told to run
    python.write_text('#!/bin/sh\ncase "$*" in *is_available*) exit 1 ;; -c*) exit 0 ;; esac\necho "$1"\n')
    python.chmod(0o755)
    ended = subprocess.run(
        [unpacked / "tools" / "gpu_check.sh", python], capture_output=True, text=True, check=True
    )
    program = Path(ended.stdout.splitlines()[-1])
    assert program.resolve() == unpacked / "benchmarks" / "device.py"
    assert program.is_file()


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_can_be_collected(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2_000:]
    assert "tests/test_packaging.py::test_a_wheel_has_every_module_and_the_type_markers" in ended.stdout


def test_importing_the_plugin_starts_nothing() -> None:
    """The server's front end imports it too."""
    code = (
        "import sys, threading, kvtier.factory.vllm as plugin;"
        "assert threading.active_count() == 1;"
        "assert 'vllm' not in sys.modules and 'torch' not in sys.modules, 'imported for nothing'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
