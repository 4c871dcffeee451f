"""Tiers that installed packages offer by an entry point: every process knows them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_rig import CHUNK_BYTES, EngineRig
from store_cli import run

from kvtier.factory.config import load_config
from kvtier.factory.registry import tier_factory, tier_types
from kvtier.factory.schema import config_schema
from kvtier.tiers import ConfigError

SHELF = """
from pydantic import Field

from kvtier.factory import TierConfig
from kvtier.tiers.testing import MemoryTier


class ShelfConfig(TierConfig):
    boards: int = Field(gt=0, description="Boards to use.", examples=[3])


class ShelfFactory:
    Config = ShelfConfig

    @staticmethod
    async def open(config, context):
        return MemoryTier("shelf")
"""

ENTRY_POINTS = """
[kvtier.tiers]
shelf = kvtier_shelf_test:ShelfFactory
broken = kvtier_never_written:Factory
raising = kvtier_raising_test:Factory
nothing = kvtier_shelf_test
odd = not a module at all
nvme = kvtier_shelf_test:ShelfFactory
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after installing the package: its modules and its metadata are on the path."""
    site = tmp_path / "site"
    information = site / "kvtier_shelf_test-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kvtier-shelf-test\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "kvtier_shelf_test.py").write_text(SHELF)
    (site / "kvtier_raising_test.py").write_text("raise SystemExit('not today')\n")
    monkeypatch.syspath_prepend(site)
    for module in ("kvtier_shelf_test", "kvtier_raising_test"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def document(**entry: Any) -> dict[str, Any]:
    pinned = {"type": "pinned", "capacity": 8 * CHUNK_BYTES}
    return {"version": 1, "tiers": [{"type": "gpu"}, pinned, {"type": "shelf", "boards": 3, **entry}]}


@pytest.mark.usefixtures("_installed")
def test_an_installed_tier_works_in_an_engine() -> None:
    rig = EngineRig(document())
    assert rig.store([b"a"]) == (b"a",)
    rig.engine.flush(10)
    assert rig.engine.stats().tiers["shelf"].chunks == 1
    rig.engine.close()


@pytest.mark.usefixtures("_installed")
def test_an_installed_tier_works_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(document()))
    code, output = run("check", str(file))
    assert code == 0, output
    file.write_text(json.dumps(document(boards=0)))
    assert run("check", str(file))[0] != 0
    assert "ShelfConfig" in run("schema")[1]


@pytest.mark.usefixtures("_installed")
def test_broken_offers_break_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        schema = config_schema()
    entries = {json.dumps(entry) for entry in schema["properties"]["tiers"]["items"]["oneOf"]}
    assert any("ShelfConfig" in entry for entry in entries)
    assert "boards" in schema["$defs"]["ShelfConfig"]["properties"]
    for name in ("broken", "raising", "odd", "nothing"):
        assert name in caplog.text
    load_config(document())
    with pytest.raises(ConfigError, match=r'^tiers\[2\]\.module_path: there is no module "kvtier_never'):
        load_config(document(type="broken"))
    with pytest.raises(ConfigError, match=r"^tiers\[2\]\.module_path: .*SystemExit: not today"):
        load_config(document(type="raising"))


@pytest.mark.usefixtures("_installed")
def test_an_offer_never_replaces_a_tier_of_kvtiers_own() -> None:
    assert tier_factory("nvme").__module__ == "kvtier.factory.builtin"
    assert tier_types().count("nvme") == 1


@pytest.mark.usefixtures("_installed")
def test_a_module_path_beside_a_known_type_is_refused_unless_it_says_the_same() -> None:
    load_config(document(module_path="kvtier_shelf_test"))
    with pytest.raises(ConfigError, match=r'module_path: "shelf" is a tier of "kvtier_shelf_test" already'):
        load_config(document(module_path="nonsense.x"))
    wrong = document()
    wrong["tiers"][1]["module_path"] = "nonsense.x"
    with pytest.raises(ConfigError, match=r'^tiers\[1\]\.module_path: "pinned" is a tier of kvtier\'s own'):
        load_config(wrong)
