"""The fields of a server's namespace: two servers share chunks only if all fields are equal."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ...tiers.nvme.store.namespaces import one_process, weights_fingerprint
from .facts import Parallel, ServerFacts

logger = logging.getLogger(__name__)


def identity_fields(facts: ServerFacts) -> Mapping[str, str]:
    """Return the namespace of a server's chunks.

    Two servers share chunks exactly if all fields are equal. vLLM's block hashes cover the tokens, the
    adapter, multi-modal inputs and the salt; these fields cover everything else. Data-parallel replicas hold
    the same bytes and share chunks: no field tells them apart.
    """
    import vllm

    groups = [f"{g.index}:{g.tokens_per_block}tok:{','.join(g.layer_names)}" for g in facts.groups]
    return {
        "server": f"vllm {'.'.join(vllm.__version__.split('.')[:2])}",
        "model": facts.model,
        **_weights(facts.model),
        **_kv_dtype(facts.kv_dtype),
        "kv_layout": facts.kv_layout,
        "bytes_per_block": str(facts.rank_block_bytes),
        "blocks_per_chunk": str(facts.blocks_per_chunk),
        "tokens_per_hash": str(facts.tokens_per_hash),
        "groups": " ".join(groups),
        "parallel": _parallel(facts.parallel),
        "replicated": str(facts.is_replicated),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "default"),
        **(facts.served or {}),
    }


def warn_of_random_hashes() -> None:
    """Warn if block hashes differ from process to process, so that no process finds another one's chunks.

    vLLM up to 0.28 draws the seed at random in each process, unless `PYTHONHASHSEED` is set. Later releases
    have a fixed seed for collision-resistant hashes, and warn of the other hashes themselves.
    """
    from vllm.v1.core import kv_cache_utils

    if "PYTHONHASHSEED" in os.environ or hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED"):
        return
    logger.warning(
        "kvtier: PYTHONHASHSEED is not set, and this vLLM then seeds its block hashes at random in each "
        "process. Chunks on the drive will not be found after a restart or by another replica. Set it to the "
        "same value for every server, at every start."
    )


def _parallel(parallel: Parallel) -> str:
    sizes = (
        f"tp{parallel.tensor} pp{parallel.pipeline} "
        f"pcp{parallel.prefill_context} dcp{parallel.decode_context}"
    )
    if parallel.pipeline == 1:
        return sizes
    # The groups are those of the first stage; only this variable says how the other stages divide the layers.
    return f"{sizes} layers {os.environ.get('VLLM_PP_LAYER_PARTITION', 'by default')}"


def _weights(model: str) -> dict[str, str]:
    """Return a fingerprint of the weights. If it is unknown which weights run, no process shares chunks.

    vLLM does not tell a plugin the revision of a model from the hub, so any local snapshot may be the one
    that runs. With several, sharing chunks by the model's name could serve the KV of other weights.
    """
    snapshots = [Path(model)] if os.path.isdir(model) else _snapshots(model)
    if len(snapshots) == 1:
        return {"weights": weights_fingerprint(snapshots[0])}
    logger.warning(
        "kvtier: %s has %d local snapshots, and vLLM does not say which one runs. Chunks will not be reused "
        "after a restart. Pass the model as the path of its directory.",
        model,
        len(snapshots),
    )
    return {"weights": "unknown", **one_process()}


def _kv_dtype(dtype: str) -> dict[str, str]:
    if dtype != "auto":
        return {"kv_dtype": dtype}
    logger.warning(
        "kvtier: this vLLM does not say which dtype the KV cache has. Chunks will not be reused after a "
        "restart. Set --kv-cache-dtype, or use vLLM 0.27 or newer."
    )
    return {"kv_dtype": dtype, **one_process()}


def _snapshots(model: str) -> list[Path]:
    from huggingface_hub import scan_cache_dir  # vLLM brings it
    from huggingface_hub.errors import CacheNotFound

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
