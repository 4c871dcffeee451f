"""What stands beside kvtier's document in vLLM's `kv_connector_extra_config`."""

from __future__ import annotations

from typing import Any

import pytest

import kvtier.factory.vllm as plugin
from kvtier.factory.vllm.options import (
    REPLACED,
    VLLM_KEYS,
    checked_document,
    composite_spec,
    extra_of_transfer,
    warn_of_unread,
)
from kvtier.tiers.errors import ConfigError

DOCUMENT = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}]}


def refusal(extra: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        composite_spec(extra)
    return str(caught.value).removeprefix("kv_connector_extra_config.")


def test_options_of_the_plugin_may_stand_beside_the_document() -> None:
    composite_spec({"kvtier": DOCUMENT, "spec_name": "kvtier", "blocks_per_chunk": 4})


def test_what_the_connector_reads_in_any_release_passes_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    extra = {"kvtier": DOCUMENT, **dict.fromkeys(VLLM_KEYS, 1), "canonical_layout": False, "block_size": None}
    composite_spec(extra)
    warn_of_unread(extra)
    assert not caplog.records


@pytest.mark.parametrize(
    ("beside", "instead"),
    [
        ("weights_epoch", 'move it into the object under "kvtier"'),
        ("on_reset", 'move it into the object under "kvtier"'),
        ("capacity", "move it into the tier's entry"),
        ("write_amplification", "move it into the tier's entry"),
        ("blocks_per_chunks", 'did you mean "blocks_per_chunk"?'),
        ("block-size", 'did you mean "block_size"?'),
        ("blocksize", 'did you mean "block_size"?'),
        ("offload_prompts_only", 'did you mean "offload_prompt_only"?'),
        ("weight_epoch", 'did you mean "weights_epoch" of the document under "kvtier"?'),
        ("onReset", 'did you mean "on_reset" of the document under "kvtier"?'),
        ("Kvtier", 'did you mean "kvtier"?; it is there, too'),
        ("kv_tier", 'did you mean "kvtier"?'),
        ("kvtier_path", 'did you mean "kvtier"?'),
    ],
)
def test_what_belongs_inside_the_document_or_is_misspelt_is_refused(beside: str, instead: str) -> None:
    message = refusal({"kvtier": DOCUMENT, beside: 1})
    assert message.startswith(f"{beside}: ")
    assert instead in message


@pytest.mark.parametrize("key", sorted(REPLACED))
def test_an_option_of_vllms_own_specs_is_refused_with_what_kvtier_has_instead(key: str) -> None:
    message = refusal({"kvtier": DOCUMENT, key: 1})
    assert message == f"{key}: is an option of vLLM's own specs, which kvtier replaces; {REPLACED[key]}"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "kvtier: is missing"),
        ({"spec_name": "x"}, "kvtier: is missing"),
        ({"kvtier": ""}, "kvtier: is missing"),
        (DOCUMENT, "version: belongs inside the document"),
        ({"Kvtier": DOCUMENT}, 'Kvtier: unknown key; did you mean "kvtier"?'),
    ],
)
def test_a_document_that_is_not_where_it_belongs_is_found(extra: dict[str, Any], message: str) -> None:
    assert refusal(extra).startswith(message)


@pytest.mark.parametrize(
    "key", ["records", "offload_decode_only", "blocks_per_step", "async_loads", "kv_role", "engine_id"]
)
def test_a_key_that_others_may_read_is_only_named(key: str, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"kvtier": DOCUMENT, key: 1, "z": 2}
    composite_spec(extra)
    assert not caplog.records, "every process builds the spec; one of them says it"
    warn_of_unread(extra)
    assert [record.getMessage() for record in caplog.records] == [
        f'kvtier: nothing in kvtier reads "{key}" and "z" in kv_connector_extra_config'
    ]


EXTRA: dict[str, Any] = {
    "spec_module_path": "kvtier.factory.vllm",
    "spec_name": "CompositeOffloadingSpec",
    "kvtier": DOCUMENT,
}
TRANSFER: dict[str, Any] = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": EXTRA,
}


def document_of_transfer(config: Any) -> Any:
    return checked_document(extra_of_transfer(config))


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


def test_the_document_is_found_in_what_vllm_gets() -> None:
    assert document_of_transfer(TRANSFER) == DOCUMENT
    several = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    multi = {**TRANSFER, "kv_connector": "MultiConnector"}
    multi["kv_connector_extra_config"] = {"connectors": [several, TRANSFER]}
    assert document_of_transfer(multi) == DOCUMENT


def test_kvtiers_own_connector_comes_from_its_module() -> None:
    own = {**TRANSFER, "kv_connector": "KvtierConnector"}
    assert document_of_transfer({**own, "kv_connector_module_path": "kvtier.factory.vllm"}) == DOCUMENT
    with pytest.raises(ConfigError, match="kv_connector_module_path: is missing; add"):
        document_of_transfer(own)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([TRANSFER], 'is not an object; write {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"'),
        ({}, 'kv_connector: is missing; add "kv_connector": "OffloadingConnector"'),
        ({**TRANSFER, "kv_connector": "OffloadConnector"}, 'set it to "OffloadingConnector"'),
        (without(TRANSFER, "kv_role"), 'kv_role: is missing; add "kv_role": "kv_both"'),
        (
            {**TRANSFER, "kv_connector_module_path": "kvtier.factory.vllm"},
            "kv_connector_module_path: belongs to",
        ),
        ({**TRANSFER, "kv_role": "both"}, 'kv_role: "both" is none of vLLM\'s roles; set it to "kv_both"'),
        ({**without(TRANSFER, "kv_role"), "kv_connector": "MultiConnector"}, "kv_role: is missing"),
        (without(TRANSFER, "kv_connector_extra_config"), "kv_connector_extra_config: is missing"),
        ({**TRANSFER, "kvtier": DOCUMENT}, "kvtier: belongs inside"),
        ({**TRANSFER, "spec_name": "CompositeOffloadingSpec"}, "spec_name: belongs inside"),
        ({**TRANSFER, "kv_connector": "MultiConnector"}, "connectors: 0 entries"),
    ],
)
def test_what_vllm_would_refuse_later_or_not_use_is_found(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        document_of_transfer(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec_name": None}, 'spec_name: is missing; add "spec_name": "CompositeOffloadingSpec"'),
        ({"spec_name": "CompositOffloadingSpec"}, 'spec_name: "CompositOffloadingSpec" is not kvtier\'s'),
        ({"spec_module_path": None}, "spec_module_path: is missing"),
        ({"spec_module_path": "kvtier.factory.vlm"}, 'set it to "kvtier.factory.vllm"'),
        ({"spec_module_path": "kvtier"}, 'set it to "kvtier.factory.vllm"'),
        ({"kvtier": ""}, "kvtier: is missing"),
        ({"weights_epoch": 3}, "weights_epoch: belongs inside the document"),
        ({"canonical_layout": True}, "canonical_layout: kvtier stores blocks in the server's own layout"),
        ({"block_size": 32, "blocks_per_chunk": 2}, '"block_size" and "blocks_per_chunk" say the same'),
        ({"block_size": "many"}, 'block_size: should be a whole number above zero, not "many"'),
        ({"blocks_per_chunk": 0}, "blocks_per_chunk: should be a whole number above zero, not 0"),
        ({"cpu_bytes_to_use": 1}, "cpu_bytes_to_use: is an option of vLLM's own specs"),
    ],
)
def test_a_mistake_in_the_extra_config_names_its_place_and_the_fix(
    change: dict[str, Any], message: str
) -> None:
    config = {**TRANSFER, "kv_connector_extra_config": {**EXTRA, **change}}
    with pytest.raises(ConfigError) as caught:
        document_of_transfer(config)
    assert str(caught.value).startswith("kv_connector_extra_config.")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["CompositOffloadingSpec", "CompositeOffloadSpec", "KvtierNVMETier"])
def test_a_misspelt_class_is_answered_with_the_one_that_was_meant(name: str) -> None:
    meant = "KvtierNvmeTier" if "NVM" in name else "CompositeOffloadingSpec"
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; did you mean '{meant}'"):
        getattr(plugin, name)


def test_what_python_asks_a_module_for_is_no_misspelling() -> None:
    with pytest.raises(AttributeError) as caught:
        plugin.__wrapped__  # noqa: B018
    assert "did you mean" not in str(caught.value)
