"""What makes two servers' chunks interchangeable, field by field."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import vllm
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from vllm.v1.kv_offload.config import OffloadingConfig

from ...tiers.errors import ConfigError
from ...tiers.identity import weights_fingerprint

logger = logging.getLogger(__name__)


def identity_fields(config: OffloadingConfig) -> Mapping[str, str]:
    """The namespace of a server's chunks.

    Two servers share chunks exactly if all of these are equal. vLLM's block hashes cover the tokens, the
    adapter, multi-modal inputs and the salt; this covers everything else.

    Raises:
        ConfigError: the server asks for a layout of chunks that kvtier does not have.
    """
    if getattr(config, "canonical_layout", False):
        raise ConfigError(
            "kv_connector_extra_config.canonical_layout", "kvtier stores blocks as they are; remove it"
        )
    parallel, cache = config.parallel, config.cache
    groups = [f"{g.group_id}:{g.tokens_per_block}tok:{','.join(g.layer_names)}" for g in config.groups]
    return {
        "server": f"vllm {'.'.join(vllm.__version__.split('.')[:2])}",
        "model": config.model.name,
        "weights": _weights(config.model.name),
        "kv_dtype": config.model.dtype,
        "kv_layout": str(getattr(config, "kv_cache_layout", None)),
        "bytes_per_block": str(config.worker_kv_bytes_per_block),
        "blocks_per_chunk": str(cache.blocks_per_chunk),
        "tokens_per_hash": str(cache.tokens_per_hash),
        "groups": " ".join(groups),
        "parallel": f"tp{parallel.tp_size} pp{parallel.pp_size} "
        f"pcp{parallel.pcp_size} dcp{parallel.dcp_size}",
        "replicated": str(config.replicated_layout),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "default"),
    }


def _weights(model: str) -> str:
    """A fingerprint of the weights; one of this start alone where it is not known which weights run.

    vLLM does not tell a plugin the revision, so of a model of the hub all local snapshots come into
    question: with more than one, sharing chunks by name could serve the KV of other weights.
    """
    snapshots = [Path(model)] if os.path.isdir(model) else _snapshots(model)
    if len(snapshots) == 1:
        return weights_fingerprint(snapshots[0])
    logger.warning(
        "kvtier: %s has %d local snapshots and nothing says which one runs, so chunks are not reused "
        "after a restart; give the model as the path of its directory",
        model,
        len(snapshots),
    )
    return f"of this start alone: {uuid.uuid4()}"


def _snapshots(model: str) -> list[Path]:
    try:
        cached = scan_cache_dir()
    except CacheNotFound:
        return []
    return [
        revision.snapshot_path
        for repo in cached.repos
        if (repo.repo_type, repo.repo_id) == ("model", model)
        for revision in repo.revisions
    ]
