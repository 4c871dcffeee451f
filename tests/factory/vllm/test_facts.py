"""The same facts come out of every generation's configs, and doubt is never shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin_servers import BLOCK_BYTES, BLOCK_TOKENS, LAYERS, kv_cache_config, offloading_config, vllm_config

from kvtier.factory.vllm.facts import Group, ServerFacts, of_offloading_config, of_vllm_config
from kvtier.tiers.errors import ConfigError

MODEL = Path("/models/tiny")


def old(config: Any, caches: Any = None) -> ServerFacts:
    return of_vllm_config(
        config,
        caches or kv_cache_config(),
        tokens_per_block=(BLOCK_TOKENS,),
        blocks_per_chunk=1,
        tokens_per_hash=BLOCK_TOKENS,
    )


def test_old_and_new_configs_of_one_server_give_the_same_facts() -> None:
    new = of_offloading_config(offloading_config({}, MODEL))
    assert new.groups == (Group(0, BLOCK_TOKENS, LAYERS),)
    assert new.rank_block_bytes == BLOCK_BYTES
    facts = old(vllm_config({}, MODEL))
    assert new.served is None, "only its workers are told"
    assert replace(facts, engine_id="", kv_layout="", served=None) == replace(new, engine_id="", kv_layout="")


def test_the_attention_backend_and_the_layout_asked_for_are_part_of_the_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    monkeypatch.delenv("VLLM_KV_CACHE_LAYOUT", raising=False)
    plain = old(vllm_config({}, MODEL)).kv_layout
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "HND")
    turned = old(vllm_config({}, MODEL)).kv_layout
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASHINFER")
    assert len({plain, turned, old(vllm_config({}, MODEL)).kv_layout}) == 3


def test_tensors_packed_into_one_allocation_are_counted_once() -> None:
    caches = kv_cache_config()
    for tensor in caches.kv_cache_tensors:
        tensor.block_stride = 1
    assert old(vllm_config({}, MODEL), caches).rank_block_bytes == BLOCK_BYTES // len(LAYERS)


def test_a_release_that_does_not_tell_the_layout_is_asked_what_its_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "HND")
    config = offloading_config({}, MODEL)
    assert of_offloading_config(config).kv_layout == "HND"
    config.kv_cache_layout = "NHD"
    assert of_offloading_config(config).kv_layout == "NHD"


def test_options_of_other_releases_are_refused() -> None:
    with pytest.raises(ConfigError, match="block_size"):
        old(vllm_config({"blocks_per_chunk": 4}, MODEL))
    config = offloading_config({}, MODEL)
    config.canonical_layout = True
    with pytest.raises(ConfigError, match="canonical_layout"):
        of_offloading_config(config)


def test_a_chunk_stands_for_fewer_tokens_where_several_groups_of_layers_have_their_own() -> None:
    config = offloading_config({}, MODEL)
    config.cache.blocks_per_chunk = 4
    assert of_offloading_config(config).chunk_tokens == 64
    config.groups *= 3
    assert of_offloading_config(config).chunk_tokens == pytest.approx(64 / 3)
