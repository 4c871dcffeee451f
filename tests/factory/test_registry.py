from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kvtier.factory import registry
from kvtier.factory.config import BUILTIN_CONFIGS
from kvtier.factory.registry import (
    Registry,
    create_spec,
    register_spec,
    register_tier,
    tier_factory,
    tier_types,
)

MODULE = """
class TapeSpec:
    def __init__(self, *args):
        self.args = args

    def get_manager(self):
        return None


class NotASpec:
    pass


function = TapeSpec
value = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "kvtier_specs_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kvtier_specs_test", raising=False)
    return "kvtier_specs_test"


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPECS", "TIERS"):
        original: Registry = getattr(registry, name)
        monkeypatch.setattr(original, "places", dict(original.places))


def test_a_registered_spec_is_imported_when_it_is_first_created(module: str) -> None:
    register_spec("Tape", module, "TapeSpec")
    assert module not in sys.modules
    spec = create_spec({"spec_name": "Tape"}, "config", "kv_cache_config")
    assert type(spec).__name__ == "TapeSpec"
    assert spec.args == ("config", "kv_cache_config")


def test_an_unregistered_spec_is_found_by_its_module_path(module: str) -> None:
    spec = create_spec({"spec_name": "TapeSpec", "spec_module_path": module}, 1)
    assert spec.args == (1,)


def test_a_registered_name_goes_before_the_module_path(module: str) -> None:
    register_spec("Tape", module, "TapeSpec")
    create_spec({"spec_name": "Tape", "spec_module_path": "kvtier_never_written"})


def test_the_spec_of_the_whole_chain_is_the_default() -> None:
    assert registry.SPECS.places[registry.DEFAULT_SPEC_NAME].module_path == "kvtier.factory.vllm"


def test_the_default_name_is_used_without_a_spec_name(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DEFAULT_SPEC_NAME", "TapeSpec")
    assert create_spec({"spec_module_path": module}).args == ()


def test_a_name_is_registered_once(module: str) -> None:
    register_spec("Tape", module, "TapeSpec")
    with pytest.raises(ValueError, match=r"Spec 'Tape' is already registered\."):
        register_spec("Tape", "elsewhere", "Other")
    with pytest.raises(ValueError, match=r"Tier 'nvme' is already registered\."):
        register_tier("nvme", "elsewhere", "Other")


def test_a_name_is_not_empty(module: str) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        register_tier("", module, "TapeFactory")
    with pytest.raises(ValueError, match="needs a name"):
        register_spec("", module, "TapeSpec")


def test_an_unknown_name_without_a_module_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Unsupported spec type: Tape$"):
        create_spec({"spec_name": "Tape"})
    with pytest.raises(ValueError, match=r"^Unsupported tier type: tape$"):
        tier_factory("tape")


@pytest.mark.parametrize("name", ["NotASpec", "value"])
def test_what_is_no_spec_is_refused(module: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{module}\.{name} is not a spec class$"):
        create_spec({"spec_name": name, "spec_module_path": module})


def test_a_name_that_the_module_lacks_is_refused(module: str) -> None:
    with pytest.raises(AttributeError, match="NoSuchSpec"):
        create_spec({"spec_name": "NoSuchSpec", "spec_module_path": module})


def test_a_broken_import_inside_a_module_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvtier_broken_spec_test.py").write_text("import kvtier_never_written\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="kvtier_never_written"):
        create_spec({"spec_name": "Tape", "spec_module_path": "kvtier_broken_spec_test"})


def test_tiers_are_registered_in_the_order_of_the_chain(module: str) -> None:
    register_tier("tape", module, "TapeFactory")
    assert tier_types() == ("gpu", "pinned", "nvme", "tape")


def test_a_class_without_a_model_of_its_entry_is_no_tier(module: str) -> None:
    register_tier("tape", module, "TapeSpec")
    with pytest.raises(TypeError, match=rf"^{module}\.TapeSpec is not a tier class$"):
        tier_factory("tape")


def test_the_built_in_factories_open_what_the_document_describes() -> None:
    factories: dict[str, Any] = {name: tier_factory(name) for name in tier_types()}
    assert {name: factory.Config for name, factory in factories.items()} == dict(BUILTIN_CONFIGS)
