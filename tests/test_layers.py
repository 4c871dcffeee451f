"""Who may import whom: between the packages, and between the folders of each.

Imports point down. `FLOORS` says where down is.
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
        "tiers/device/tensors.py",
        "tiers/pinned/arena.py",
        "tiers/pinned/pinning.py",
    },
    "lmdb": {"tiers/nvme/index/environment.py"},
    "aiofiles": {"tiers/nvme/io/threads.py"},
}
# Each list from the ground up. A file, or a folder of files, may import from itself and from what stands
# before it in one of its lists. Two that share no list know nothing of each other.
FLOORS = [
    ["tiers", "tiers/pinned/eviction", "tiers/pinned", "tiers/device"],
    [
        "tiers",
        "tiers/nvme/io",
        "tiers/nvme/volume",
        "tiers/nvme/format",
        "tiers/nvme/index",
        "tiers/nvme/wear",
        "tiers/nvme/log",
        "tiers/nvme/store",
        "tiers/nvme",
        "tiers/nvme/admin",
    ],
    [
        "engine/movement",
        "engine/executor.py",
        "engine/loop.py",
        "engine/waiting.py",
        "engine/bounded.py",
        "engine/events.py",
        "engine/job.py",
        "engine/movement/flushing.py",
        "engine/movement/rates.py",
        "engine/movement/lower.py",
        "engine/namespace.py",
        "engine/movement/prompts.py",
        "engine/movement/losses.py",
        "engine/movement/deadlines.py",
        "engine/movement/worth.py",
        "engine/movement/queues.py",
        "engine/movement/tally.py",
        "engine/movement/cascades.py",
        "engine/movement/placement.py",
        "engine/movement/relay.py",
        "engine/movement/transfers.py",
        "engine/movement/mover.py",
        "engine/chain.py",
        "engine/loaded.py",
        "engine/library.py",
        "engine/metrics",
        "engine/live",
        "engine/lifetime.py",
        "engine/unclosed.py",
        "engine/engine.py",
        "engine",
    ],
    [
        "engine/movement/lower.py",
        "engine/movement/prompts.py",
        "engine/movement/placement.py",
        "engine/movement/transfers.py",
        "engine/movement/mover.py",
        "engine/chain.py",
        "engine/server.py",
    ],
    [
        "engine/executor.py",
        "engine/loop.py",
        "engine/waiting.py",
        "engine/movement/prompts.py",
        "engine/movement/worth.py",
        "engine/movement/placement.py",
        "engine/movement/transfers.py",
        "engine/movement/mover.py",
        "engine/chain.py",
        "engine/loaded.py",
        "engine/library.py",
        "engine/recording",
        "engine/replay",
    ],
    [
        "factory/text",
        "factory",
        "factory/vllm/options.py",
        "factory/sizing",
        "factory/machine",
        "factory/cli/completion.py",
        "factory/cli/exits.py",
        "factory/cli/output.py",
        "factory/cli/input.py",
        "factory/cli/store",
        "factory/cli/planning",
        "factory/cli/watching",
        "factory/cli/shapes.py",
        "factory/cli",
        "factory/__main__.py",
    ],
    [
        "factory/text",
        "factory",
        "factory/vllm/options.py",
        "factory/vllm/telling",
        "factory/vllm/scheduling",
        "factory/vllm",
        "factory/vllm/generations",
        "factory/vllm/__init__.py",
    ],
]
# All that the first may import from the second, though the floors would allow more.
ONLY = {("tiers/device", "tiers/pinned"): {"tiers/pinned/arena.py"}}  # a copy goes into the arena's slots
# The only folders that may import from it, beside itself.
ALLOWED_BY = {"tiers/nvme/admin": {"factory/cli/store", "factory/cli/watching"}}
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
    package = ("kvtier", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            names = [(*base, *module, alias.name) for alias in node.names]
        else:
            continue
        yield from (file_of(name[1:]) for name in names if name[0] == "kvtier" and name[1:])


def file_of(name: tuple[str, ...]) -> str:
    """The file that has a name: a module, a package, or what defines it."""
    module = ROOT.joinpath(*name)
    if module.with_suffix(".py").is_file():
        return named(module.with_suffix(".py"))
    if module.is_dir():
        return named(module / "__init__.py")
    return file_of(name[:-1])


def floor(name: str) -> str:
    """The floor on which a file stands: its own, or its folder's."""
    return name if any(name in floors for floors in FLOORS) else str(Path(name).parent)


def package(name: str) -> str:
    return name.split("/")[0]


def may_import(importer: str, imported: str) -> bool:
    upper, lower = floor(importer), floor(imported)
    if lower in ALLOWED_BY and upper != lower:
        return upper in ALLOWED_BY[lower]
    if upper == lower or package(upper) != package(lower):
        return True
    down = any(lower in floors[: floors.index(upper)] for floors in FLOORS if upper in floors)
    return down and imported in ONLY.get((upper, lower), {imported})


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    own = [name.split(".") for name in imports(path) if name.split(".")[0] == "kvtier"]
    wrong = [".".join(name) for name in own if len(name) > 1 and name[1] not in MAY_IMPORT[layer]]
    assert not wrong, f"{named(path)} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_down_the_floors(path: Path) -> None:
    wrong = [name for name in own_imports(path) if not may_import(named(path), name)]
    assert not wrong, f"{named(path)} imports {wrong}"


def test_every_module_stands_on_a_floor() -> None:
    known = {step for floors in FLOORS for step in floors}
    assert not [named(path) for path in SOURCES if floor(named(path)) not in known]


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
        ("engine/movement/placement.py", "engine/movement/mover.py"),
        ("engine/chain.py", "engine/library.py"),
        ("engine/server.py", "engine/library.py"),
        ("engine/library.py", "engine/server.py"),
        ("engine/replay/replay.py", "engine/engine.py"),
        ("engine/engine.py", "engine/replay/replay.py"),
        ("factory/composite.py", "factory/vllm/plugin.py"),
        ("factory/vllm/plugin.py", "factory/vllm/generations/g.py"),
        ("factory/cli/app.py", "factory/vllm/plugin.py"),
        ("factory/entries.py", "tiers/nvme/admin/fsck.py"),
        ("factory/cli/app.py", "tiers/nvme/admin/fsck.py"),
        ("factory/cli/store/du.py", "factory/cli/app.py"),
        ("factory/text/units.py", "factory/sizes.py"),
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
