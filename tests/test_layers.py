"""Who may import whom: between the packages, and between the folders of each.

Imports point down. `STAIRS` says where down is.
"""

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
    "aiofiles": {"tiers/nvme/io/lanes.py"},
}
# Each from the ground up: a folder, or a file of one, may import from itself and from what stands before it.
# Two that share no stairs know nothing of each other.
STAIRS = [
    ["tiers", "tiers/pinned", "tiers/device"],
    [
        "tiers",
        "tiers/nvme/io",
        "tiers/nvme/format",
        "tiers/nvme/index",
        "tiers/nvme/log",
        "tiers/nvme/store",
        "tiers/nvme",
        "tiers/nvme/admin",
    ],
]
STAIRED = {stairs[0].split("/")[0] for stairs in STAIRS}  # packages without stairs are free within
# All that the first may import of the second, though the stairs would allow more.
DOORS = {("tiers/device", "tiers/pinned"): {"tiers/pinned/arena.py"}}  # a copy goes into the arena's slots
# The only folders that may import from it, but itself.
GUESTS = {"tiers/nvme/admin": {"factory/cli"}}
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


def own_imports(path: Path) -> Iterator[str]:
    """The files of kvtier that a file imports."""
    for name in imports(path):
        first, *parts = name.split(".")
        if first == "kvtier" and parts:
            module = Path(*parts)
            yield str(module / "__init__.py" if (ROOT / module).is_dir() else module.with_suffix(".py"))


def room(name: str) -> str:
    """The step of the stairs on which a file stands: its own, or its folder's."""
    return name if any(name in stairs for stairs in STAIRS) else str(Path(name).parent)


def package(name: str) -> str:
    return name.split("/")[0]


def may_import(importer: str, imported: str) -> bool:
    upper, lower = room(importer), room(imported)
    if lower in GUESTS and upper != lower:
        return upper in GUESTS[lower]
    if upper == lower or package(upper) != package(lower) or package(upper) not in STAIRED:
        return True
    down = any(lower in stairs[: stairs.index(upper)] for stairs in STAIRS if upper in stairs)
    return down and imported in DOORS.get((upper, lower), {imported})


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "kvtier"]
    wrong = [".".join(name) for name in own if len(name) > 1 and name[1] not in MAY_IMPORT[layer]]
    assert not wrong, f"{named(path)} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_down_the_stairs(path: Path) -> None:
    wrong = [name for name in own_imports(path) if not may_import(named(path), name)]
    assert not wrong, f"{named(path)} imports {wrong}"


def test_every_module_stands_on_the_stairs() -> None:
    steps = {step for stairs in STAIRS for step in stairs}
    names = [named(path) for path in SOURCES if package(named(path)) in STAIRED]
    assert not [name for name in names if room(name) not in steps]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("tiers/base.py", "tiers/pinned/slots.py"),
        ("tiers/pinned/tier.py", "tiers/device/gpu.py"),
        ("tiers/pinned/tier.py", "tiers/nvme/io/files.py"),
        ("tiers/device/gpu.py", "tiers/pinned/slots.py"),
        ("tiers/nvme/io/pieces.py", "tiers/nvme/format/codec.py"),
        ("tiers/nvme/format/codec.py", "tiers/nvme/index/records.py"),
        ("tiers/nvme/index/ledger.py", "tiers/nvme/log/room.py"),
        ("tiers/nvme/log/room.py", "tiers/nvme/store/directory.py"),
        ("tiers/nvme/store/opening.py", "tiers/nvme/upkeep.py"),
        ("tiers/nvme/tier.py", "tiers/nvme/admin/fsck.py"),
        ("tiers/nvme/log/room.py", "tiers/device/gpu.py"),
        ("engine/chain.py", "tiers/nvme/admin/fsck.py"),
        ("factory/entries.py", "tiers/nvme/admin/fsck.py"),
    ],
)
def test_an_arrow_up_is_wrong(importer: str, imported: str) -> None:
    assert not may_import(importer, imported)


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
