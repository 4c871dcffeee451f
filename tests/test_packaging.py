"""What is installed is what is in the folders."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_FOLDERS = ("tiers", "factory", "engine")


def modules_on_disk() -> set[str]:
    return {
        str(path.relative_to(ROOT)) for folder in PACKAGE_FOLDERS for path in (ROOT / folder).rglob("*.py")
    }


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {"kvtier." + str(Path(name).parent).replace("/", ".") for name in modules_on_disk()}


def test_a_wheel_has_every_module_and_the_type_markers(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    pytest.importorskip("build")
    copied = tmp_path / "checkout"
    archive = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    # Built from a copy: setuptools leaves its work beside the sources.
    for name in filter(None, archive.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            target = copied / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build[-1] = str(copied)
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"kvtier/{name}" for name in modules_on_disk()} <= names
    assert {f"kvtier/{folder}/py.typed" for folder in PACKAGE_FOLDERS} <= names
    assert not [name for name in names if name.startswith(("tests/", "kvtier/tests/"))]


def test_importing_the_plugin_starts_nothing() -> None:
    """The server's front end imports it too."""
    code = (
        "import sys, threading, kvtier.factory.vllm as plugin;"
        "assert threading.active_count() == 1;"
        "assert 'vllm' not in sys.modules and 'torch' not in sys.modules, 'imported for nothing'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
