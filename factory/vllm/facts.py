"""The facts that kvtier needs about a server, from any generation of vLLM's interface.

From 0.26 on vLLM hands a plugin one `OffloadingConfig`; before, the plugin gets vLLM's own two configs and
works the same facts out of them. This module only reads them, and imports nothing of vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...tiers.errors import ConfigError
from .options import CANONICAL, EXTRA, IN_OWN_LAYOUT
from .served import served_fields

GROUP_BYTES = 4  # the end of each key says which group of layers it is of

_LAYOUT = "VLLM_KV_CACHE_LAYOUT"  # what vLLM itself reads; 0.29 and newer tell the outcome


@dataclass(frozen=True, slots=True)
class Group:
    """One KV-cache group: layers whose blocks are allocated together."""

    index: int
    tokens_per_block: int
    layer_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Which worker this is, and how many there are in which direction."""

    rank: int
    world_size: int
    tensor: int
    pipeline: int
    prefill_context: int
    decode_context: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One server, the same in all its processes but for the rank.

    Attributes:
        engine_id: unique on the host, one for each data-parallel replica.
        model: its name or the path of its directory.
        served: how it serves the model where that differs from the model's files; None if unknown.
        kv_dtype: the type of keys and values; "auto" if unknown.
        kv_layout: how a block's bytes are arranged, as far as the server says.
        extra: what the user wrote into the connector's extra config.
        rank_block_bytes: one rank's bytes of one block, in all layers that share it.
        tokens_per_hash: tokens that one more block hash stands for.
        is_replicated: all ranks hold the same bytes.
        has_events: the server publishes KV-cache events.
    """

    engine_id: str
    model: str
    served: Mapping[str, str] | None
    kv_dtype: str
    kv_layout: str
    extra: Mapping[str, Any]
    groups: tuple[Group, ...]
    rank_block_bytes: int
    blocks_per_chunk: int
    tokens_per_hash: int
    parallel: Parallel
    is_replicated: bool
    has_events: bool

    @property
    def chunk_tokens(self) -> float:
        """How many tokens of all layers a chunk stands for; every group has chunks of its own."""
        chunks_per_token = sum(1 / (group.tokens_per_block * self.blocks_per_chunk) for group in self.groups)
        return 1 / chunks_per_token


def of_offloading_config(config: Any, *, served: Mapping[str, str] | None = None) -> ServerFacts:
    """Take the facts from the `OffloadingConfig` of vLLM 0.26 and newer.

    Raises:
        ConfigError: the server asks for a layout of chunks that kvtier does not have.
    """
    if getattr(config, "canonical_layout", False):
        raise ConfigError(f"{EXTRA}.{CANONICAL}", IN_OWN_LAYOUT)
    parallel = config.parallel
    return ServerFacts(
        engine_id=config.engine_id,
        model=config.model.name,
        served=served,
        kv_dtype=config.model.dtype,
        kv_layout=str(getattr(config, "kv_cache_layout", os.environ.get(_LAYOUT))),
        extra=config.extra_config,
        groups=tuple(
            Group(getattr(group, "group_id", index), group.tokens_per_block, tuple(group.layer_names))
            for index, group in enumerate(config.groups)
        ),
        rank_block_bytes=config.worker_kv_bytes_per_block,
        blocks_per_chunk=config.cache.blocks_per_chunk,
        tokens_per_hash=config.cache.tokens_per_hash,
        parallel=Parallel(
            rank=parallel.rank,
            world_size=parallel.world_size,
            tensor=parallel.tp_size,
            pipeline=parallel.pp_size,
            prefill_context=parallel.pcp_size,
            decode_context=parallel.dcp_size,
        ),
        is_replicated=getattr(config, "replicated_layout", False),
        has_events=config.enable_kv_cache_events,
    )


def of_vllm_config(
    vllm_config: Any,
    kv_cache_config: Any,
    *,
    tokens_per_block: Sequence[int],
    blocks_per_chunk: int,
    tokens_per_hash: int,
) -> ServerFacts:
    """Take the facts from vLLM's own configs, before 0.26.

    Ranks that hold the same bytes are not recognised: each stores its own.

    Args:
        tokens_per_block: of each group, as the spec's base class has worked it out.

    Raises:
        ConfigError: an option of newer releases is used, which this one would ignore.
    """
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    extra = transfer.kv_connector_extra_config
    if "blocks_per_chunk" in extra:
        raise ConfigError(
            f"{EXTRA}.blocks_per_chunk", "this vLLM does not know it; use block_size, in tokens"
        )
    events = vllm_config.kv_events_config
    return ServerFacts(
        engine_id=transfer.engine_id,
        model=vllm_config.model_config.model,
        served=served_fields(vllm_config),
        kv_dtype=_dtype(vllm_config),
        kv_layout=_layout(vllm_config),
        extra=extra,
        groups=tuple(
            Group(index, tokens, tuple(group.layer_names))
            for index, (group, tokens) in enumerate(
                zip(kv_cache_config.kv_cache_groups, tokens_per_block, strict=True)
            )
        ),
        rank_block_bytes=_block_bytes(kv_cache_config),
        blocks_per_chunk=blocks_per_chunk,
        tokens_per_hash=tokens_per_hash,
        parallel=Parallel(
            rank=parallel.rank,
            world_size=parallel.world_size,
            tensor=parallel.tensor_parallel_size,
            pipeline=parallel.pipeline_parallel_size,
            prefill_context=getattr(parallel, "prefill_context_parallel_size", 1),
            decode_context=getattr(parallel, "decode_context_parallel_size", 1),
        ),
        is_replicated=False,
        has_events=events is not None and events.enable_kv_cache_events,
    )


def _dtype(vllm_config: Any) -> str:
    dtype = vllm_config.cache_config.cache_dtype
    return str(vllm_config.model_config.dtype if dtype == "auto" else dtype).removeprefix("torch.")


def _layout(vllm_config: Any) -> str:
    """What decides how the kernels arrange a block, as far as it was asked for."""
    backend = getattr(getattr(vllm_config, "attention_config", None), "backend", None)
    backend = getattr(backend, "name", backend) or os.environ.get("VLLM_ATTENTION_BACKEND")
    return f"{os.environ.get(_LAYOUT)} {backend}"


def _block_bytes(kv_cache_config: Any) -> int:
    tensors = kv_cache_config.kv_cache_tensors
    if not tensors or kv_cache_config.num_blocks < 1:
        return 0
    # Tensors with a stride of their own are views of one allocation, each as large as all of it.
    packed = getattr(tensors[0], "block_stride", 0)
    total = tensors[0].size if packed else sum(tensor.size for tensor in tensors)
    return int(total // kv_cache_config.num_blocks)
