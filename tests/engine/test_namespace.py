"""What may stand in a namespace, and that equal namespaces are one, whatever the order of their fields."""

from __future__ import annotations

import enum
import itertools
from pathlib import Path
from typing import Any

import pytest
from engine_rig import EngineRig, config

from kvtier.engine import OffloadEngine
from kvtier.engine.namespace import checked_namespace
from kvtier.tiers import ConfigError

RESERVED = ["layout", "blocks_per_chunk", "weights_epoch", "process", "parts", "kvtier.layout", "kvtier."]


class Model(enum.StrEnum):
    TINY = "tiny"


@pytest.mark.parametrize("name", RESERVED)
def test_a_name_of_kvtiers_own_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^namespace.{name}: a reserved name") as refused:
        OffloadEngine.open(config(tmp_path), {"model": "m", name: "6"})
    assert refused.value.path == f"namespace.{name}"


@pytest.mark.parametrize("value", [True, None, 1, 1.5, b"bytes", ["m"], {"a": "b"}, Path("m")])
def test_a_value_that_is_not_text_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^namespace\.flag: should be text"):
        OffloadEngine.open(config(tmp_path), {"model": "m", "flag": value})


@pytest.mark.parametrize("name", [1, None, b"model", "", ("a",)])
def test_a_name_that_is_not_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^namespace: the name of a field should be text"):
        checked_namespace({name: "m"})


@pytest.mark.parametrize("namespace", ["model", [("model", "m")], {"model"}, 5])
def test_what_is_no_mapping_is_refused(namespace: Any) -> None:
    with pytest.raises(ConfigError, match=r"^namespace: should map names to text"):
        checked_namespace(namespace)


@pytest.mark.parametrize("fields", [{"model": "\ud800"}, {"\udfff": "m"}])
def test_half_a_character_is_refused_in_a_message_that_can_be_printed(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="half a character") as refused:
        checked_namespace(fields)
    str(refused.value).encode()


def test_a_member_of_an_enumeration_is_its_text() -> None:
    (value,) = checked_namespace({"model": Model.TINY}).values()
    assert type(value) is str
    assert value == "tiny"


def test_a_namespace_is_a_set_of_fields(tmp_path: Path) -> None:
    """Whatever the order, and after each reopening."""
    fields = {"model": "größe", "revision": "1", "dtype": ""}
    for number, order in enumerate(itertools.permutations(fields.items())):
        rig = EngineRig(config(tmp_path), dict(order))
        assert rig.engine.lookup([b"k%d" % i for i in range(number)]) == number
        rig.store([b"k%d" % number])
        rig.engine.close()


@pytest.mark.parametrize("other", [{"revision": "2"}, {}, {"revision": "1", "extra": ""}])
def test_fields_that_differ_never_share_a_chunk(tmp_path: Path, other: dict[str, str]) -> None:
    rig = EngineRig(config(tmp_path), {"model": "m", "revision": "1"})
    rig.store([b"k"])
    rig.engine.close()
    rig = EngineRig(config(tmp_path), {"model": "m", **other})
    assert rig.engine.lookup([b"k"]) == 0
    rig.engine.close()
