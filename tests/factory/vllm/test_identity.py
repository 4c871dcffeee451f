"""Which servers share chunks, and what is said where none can."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from standin_servers import kv_cache_config, offloading_config, vllm_config
from transformers import PretrainedConfig

from kvtier.factory.vllm import identity
from kvtier.factory.vllm.facts import ServerFacts, of_offloading_config, of_vllm_config
from kvtier.factory.vllm.native import _identity
from kvtier.factory.vllm.plugin import Plugin
from kvtier.factory.vllm.served import served_fields
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.pinned.arena import Arena

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

PARTITION = "VLLM_PP_LAYER_PARTITION"

NAMESPACES = {"the whole chain": identity.identity_fields, "below vLLM's own tier": _identity}


@pytest.fixture(params=list(NAMESPACES.values()), ids=list(NAMESPACES))
def namespace(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(PARTITION, raising=False)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def facts(model: Path, *, engine: str = "e", **parallel: int) -> ServerFacts:
    config = offloading_config({"kvtier": {"version": 1, "tiers": TIERS}}, model)
    config.engine_id = engine
    vars(config.parallel).update(parallel)
    return of_offloading_config(config)


TIERS = [{"type": "gpu"}, {"type": "pinned", "capacity": "1MiB"}]


def test_replicas_share_chunks_and_no_arena(namespace: Any, model: Path) -> None:
    one, other = (
        facts(model, engine=f"e_dp{index}", data_parallel_index=index, data_parallel_size=2)
        for index in range(2)
    )
    alone = facts(model, data_parallel_index=0, data_parallel_size=1)
    assert namespace(one) == namespace(other) == namespace(alone)
    places = {Plugin(replica)._geometry.place().name for replica in (one, other)}
    assert len(places) == 2


def test_ranks_of_one_server_share_a_namespace(namespace: Any, model: Path) -> None:
    first, second = (facts(model, rank=rank, world_size=2, pp_size=2) for rank in range(2))
    assert namespace(first) == namespace(second)


def test_a_pipeline_does_not_share_with_ranks_that_split_otherwise(namespace: Any, model: Path) -> None:
    splits: list[dict[str, Any]] = [
        {},
        {"tp_size": 2},
        {"pp_size": 2},
        {"pcp_size": 2},
        {"dcp_size": 2, "tp_size": 2},
    ]
    fields = [namespace(facts(model, world_size=2 if split else 1, **split)) for split in splits]
    assert len({str(one) for one in fields}) == len(splits)


def test_stages_of_other_layers_do_not_share(
    namespace: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = facts(model, world_size=3, pp_size=3)
    by_default = namespace(pipeline)
    monkeypatch.setenv(PARTITION, "2,1,3")
    assert namespace(pipeline) != by_default
    tensor = facts(model, world_size=3, tp_size=3)
    without_stages = namespace(tensor)
    monkeypatch.delenv(PARTITION)
    assert namespace(tensor) == without_stages


def test_old_configs_tell_pipelines_apart_too(model: Path) -> None:
    fields = [
        identity.identity_fields(
            of_vllm_config(
                vllm_config({}, model, **sizes),
                kv_cache_config(),
                tokens_per_block=(16,),
                blocks_per_chunk=1,
                tokens_per_hash=16,
            )
        )["parallel"]
        for sizes in ({}, {"pipeline": 2}, {"tensor": 2})
    ]
    assert len(set(fields)) == 3


USUAL: dict[str, Any] = {}
CHANGES: list[dict[str, Any]] = [
    {"hf_overrides": {"rope_theta": 1e6}, "hf_config": PretrainedConfig(rope_theta=1e6)},
    {"hf_overrides": {"rope_theta": 2e6}, "hf_config": PretrainedConfig(rope_theta=2e6)},
    {"quantization": "fp8"},
    {"cache_dtype": "fp8", "dtype": torch.float16},
    {"cache_dtype": "fp8", "dtype": torch.bfloat16},
    {"load_format": "dummy", "seed": 1},
    {"load_format": "dummy", "seed": 2},
    {"model_loader_extra_config": {"tensorizer_uri": "elsewhere"}},
    {"speculative_config": SimpleNamespace(method="eagle", model="a")},
]


def served_by(model: Path, changes: dict[str, Any]) -> dict[str, str]:
    config = vllm_config({}, model)
    for part in (config.model_config, config.cache_config, config.load_config, config):
        vars(part).update({name: value for name, value in changes.items() if hasattr(part, name)})
    vars(config.model_config).update(hf_overrides=changes.get("hf_overrides", {}))
    vars(config).update(speculative_config=changes.get("speculative_config"))
    return dict(served_fields(config))


def test_how_a_model_is_served_is_part_of_the_namespace(namespace: Any, model: Path) -> None:
    config = offloading_config({}, model)
    fields = [
        namespace(of_offloading_config(config, served=served_by(model, changes)))
        for changes in (USUAL, *CHANGES)
    ]
    assert len({str(one) for one in fields}) == 1 + len(CHANGES)
    assert fields[0] == namespace(of_offloading_config(config)), "what is as usual takes no field"


def test_scales_that_each_process_finds_for_itself_are_shared_with_nobody(model: Path) -> None:
    first, second = (served_by(model, {"calculate_kv_scales": True}) for _ in range(2))
    assert first != second
    assert Identity(first).is_of_one_process


def test_a_type_that_vllm_hides_is_never_the_same_twice(namespace: Any, model: Path) -> None:
    config = offloading_config({}, model)
    config.model.dtype = "auto"
    first, second = (namespace(of_offloading_config(config)) for _ in range(2))
    assert first != second
    assert Identity(first).is_of_one_process


@pytest.mark.parametrize("is_told", [True, False])
def test_the_scheduler_learns_from_the_workers_how_the_model_is_served(
    model: Path, caplog: pytest.LogCaptureFixture, is_told: bool
) -> None:
    config = offloading_config({"kvtier": {"version": 1, "tiers": TIERS}}, model)
    worker = Plugin(of_offloading_config(config, served={"quantization": "fp8"} if is_told else None))
    arena = Arena.private(1, 4096)
    try:
        if is_told:
            worker._report_served(arena)
        fields = Plugin(of_offloading_config(config))._identity(arena)
    finally:
        arena.close()
    assert fields.get("quantization") == ("fp8" if is_told else None)
    assert Identity(fields).is_of_one_process is not is_told
    assert ("no worker has reported" in caplog.text) is not is_told


@pytest.mark.parametrize(
    ("has_seed_of_its_own", "variable", "is_said"),
    [(False, None, True), (False, "0", False), (True, None, False)],
)
def test_random_block_hashes_are_said_at_start(
    has_seed_of_its_own: bool,
    variable: str | None,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vllm.v1.core import kv_cache_utils

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if variable is not None:
        monkeypatch.setenv("PYTHONHASHSEED", variable)
    if has_seed_of_its_own:
        monkeypatch.setattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", "a seed", raising=False)
    else:
        monkeypatch.delattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", raising=False)
    with caplog.at_level(logging.WARNING):
        identity.warn_of_random_hashes()
    assert ("PYTHONHASHSEED" in caplog.text) is is_said
