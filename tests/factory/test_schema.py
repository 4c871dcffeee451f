from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kvtier.factory.config import BUILTIN_CONFIGS, parse_config
from kvtier.factory.schema import DIALECT, config_schema
from kvtier.tiers import ConfigError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.json"))

GOOD: dict[str, Any] = {
    "version": 1,
    "tiers": [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "64GiB"},
        {"type": "nvme", "path": "/mnt/nvme0/kvtier", "capacity": 1 << 40, "reserve": "10%"},
    ],
}


def accepts(document: Any) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    return bool(jsonschema.Draft202012Validator(config_schema()).is_valid(document))


def test_the_schema_is_a_schema_of_plain_json() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert schema["$schema"] == DIALECT
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(schema)


def test_every_key_is_described() -> None:
    schema = config_schema()
    assert all("description" in field for field in schema["properties"].values())
    for model in BUILTIN_CONFIGS.values():
        definition = schema["$defs"][model.__name__]
        assert definition["additionalProperties"] is False
        assert set(definition["properties"]) == set(model.model_fields) - {"module_path"}, "refused for these"
        assert all("description" in field for field in definition["properties"].values())


def test_defaults_are_shown_as_they_would_be_written() -> None:
    fields = config_schema()["$defs"]["NvmeConfig"]["properties"]
    shown = {name: field["default"] for name, field in fields.items() if field.get("default") is not None}
    assert shown == {
        "reserve": "10%",
        "load_deadline_s": 10.0,
        "write_amplification": 1.3,
        "fill": True,
        "admission": "always",
    }


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.name))
def test_the_examples_are_good_documents(file: Path) -> None:
    document = json.loads(file.read_text())
    parse_config(document)
    assert accepts(document)


def test_a_policy_of_another_package_is_open() -> None:
    document = copy.deepcopy(GOOD)
    document["tiers"][1] |= {"policy": "Mine", "policy_module_path": "my_package.policy"}
    document["tiers"][2] |= {"endurance": "1.2PB", "write_budget": 1, "admission": "second_touch"}
    assert accepts(document)


def test_a_tier_of_another_package_is_open() -> None:
    document = copy.deepcopy(GOOD)
    document["tiers"].append({"type": "Tape", "module_path": "kvtier_tape", "reel": 3})
    assert accepts(document)
    del document["tiers"][3]["module_path"]
    assert not accepts(document)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/a", "capacity": "1TiB", "mount": "/"},
        {"path": ["/a"], "capacity": "1TiB"},
        {"path": ["/a", {"path": "/b", "capacity": "80%", "reserve": 0, "mount": "/"}], "capacity": 1 << 40},
        {"path": [{"path": "/a", "capacity": "1TiB"}, {"path": "/b", "capacity": "1TiB"}]},
    ],
)
def test_drives_are_written_in_several_ways(fields: dict[str, Any]) -> None:
    document = copy.deepcopy(GOOD)
    document["tiers"][2] = {"type": "nvme", **fields}
    assert accepts(document)
    config = parse_config(document)
    assert parse_config(json.loads(config.model_dump_json(exclude_none=True))) == config


@pytest.mark.parametrize("fields", [{"path": "/a"}, {"path": ["/a", {"path": "/b", "capacity": "1TiB"}]}])
def test_a_drive_without_a_capacity_is_refused(fields: dict[str, Any]) -> None:
    document = copy.deepcopy(GOOD)
    document["tiers"][2] = {"type": "nvme", **fields}
    assert not accepts(document)
    with pytest.raises(ConfigError, match=r"^tiers\[2\]\.capacity: missing; for example"):
        parse_config(document)


@pytest.mark.parametrize(
    ("i", "wrong"),
    [
        (0, {"colour": "red"}),
        (1, {"capacity": "64G"}),
        (1, {"capacity": -1}),
        (1, {"policy": "mru"}),
        (1, {"policy": "Mine", "policy_module_path": None}),
        (1, {"policy_module_path": "json"}),
        (1, {"numa_node": -1}),
        (1, {"numa_node": "auto"}),
        (1, {"type": "pined"}),
        (2, {"path": "relative"}),
        (2, {"path": 5}),
        (2, {"load_deadline_s": 0}),
        (2, {"write_amplification": 0.5}),
        (2, {"reserve": "half"}),
        (2, {"fill": "no"}),
        (2, {"admission": "twice"}),
        (2, {"write_budget": 0}),
        (2, {"write_budget": 1e308}),
        (2, {"endurance": "80%"}),
        (2, {"mount": "relative"}),
        (2, {"path": []}),
        (2, {"path": ["/a", "relative"]}),
        (2, {"path": ["/a", 5]}),
        (2, {"path": ["/a", {"capacity": "1TiB"}]}),
        (2, {"path": ["/a", {"path": "/b", "colour": "red"}]}),
        (2, {"path": ["/a", {"path": "/b", "capacity": "64G"}]}),
    ],
)
def test_the_schema_and_the_models_refuse_the_same(i: int, wrong: dict[str, Any]) -> None:
    assert accepts(GOOD)
    document = copy.deepcopy(GOOD)
    document["tiers"][i].update(wrong)
    assert not accepts(document)
    with pytest.raises(ConfigError):
        parse_config(document)
