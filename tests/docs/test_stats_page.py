"""docs/stats.md has the shape of an engine's statistics, and a row for every number in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from engine_rig import EngineRig, config
from markdown_files import ROOT

PAGE = (ROOT / "docs" / "stats.md").read_text()
KEYS = [b"a", b"b"]


def shape() -> dict[str, Any]:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    document: dict[str, Any] = json.loads(block)
    return document


def two_drives(path: Path) -> dict[str, Any]:
    document = config(path)
    document["tiers"][2]["path"] = [{"path": str(path / name)} for name in ("first", "second")]
    return document


@pytest.fixture(params=[config, two_drives])
def stats(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    rig = EngineRig(request.param(tmp_path))
    rig.store(KEYS)
    rig.engine.flush(10)
    rig.load([*KEYS, b"absent"])
    stats = rig.engine.stats().as_dict()
    rig.engine.close()
    return stats


def test_an_engines_statistics_are_json_of_that_shape(stats: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = shape()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(stats)), schema)
    wrong = json.loads(json.dumps(stats))
    wrong["tiers"]["pinned"]["counters"]["hits"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_every_number_has_its_row(stats: Any) -> None:
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*? \|", PAGE, re.MULTILINE))))
    tiers = list(stats["tiers"].values())
    tiers += [part for tier in tiers for part in tier["parts"].values()]
    told = {name for tier in tiers for kind in ("counters", "gauges", "histograms") for name in tier[kind]}
    assert told - rows == set()
