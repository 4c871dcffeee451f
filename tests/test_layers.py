"""Who may import whom: factory imports engine and tiers, engine imports tiers, tiers import neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "tiers": {"tiers"},
    "engine": {"engine", "tiers"},
    "factory": {"factory", "engine", "tiers"},
}
HOMES = {
    "torch": {
        "tiers/device/gpu.py",
        "tiers/device/cuda.py",
        "tiers/pinned/arena.py",
        "tiers/pinned/pinning.py",
    },
    "lmdb": {"tiers/nvme/index/environment.py"},
    "aiofiles": {"tiers/nvme/io/files.py"},
}
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, kvtier's own as `kvtier.engine.chain`."""
    package = ("kvtier", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join((*base, *filter(None, [node.module])))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "kvtier"]
    wrong = [".".join(name) for name in own if len(name) > 1 and name[1] not in MAY_IMPORT[layer]]
    assert not wrong, f"{named(path)} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_foreign_library_with_rules_of_its_own_has_one_home(path: Path) -> None:
    for library, homes in HOMES.items():
        if any(name.split(".")[0] == library for name in imports(path)):
            assert named(path) in homes, f"{library} stays in {sorted(homes)}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_vllm_is_known_to_its_plugin_only(path: Path) -> None:
    if path.is_relative_to(ROOT / "factory" / "vllm"):
        return
    assert not any(name.split(".")[0] == "vllm" for name in imports(path))


def test_every_module_has_its_line_in_the_documentation() -> None:
    text = (ROOT / "docs" / "structures.md").read_text()
    missing = [named(path) for path in SOURCES if f"`{named(path)}`" not in text]
    assert not [name for name in missing if not name.endswith("__init__.py")]
