"""What makes two servers' chunks interchangeable, field by field."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ...tiers.nvme.store.namespaces import one_process, weights_fingerprint
from .facts import Parallel, ServerFacts

logger = logging.getLogger(__name__)


def identity_fields(facts: ServerFacts) -> Mapping[str, str]:
    """The namespace of a server's chunks.

    Two servers share chunks exactly if all of these are equal. vLLM's block hashes cover the tokens, the
    adapter, multi-modal inputs and the salt; this covers everything else. Data-parallel replicas hold the
    same bytes and share: nothing here tells them apart.
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
    """Say so where block hashes differ from process to process, so that no chunk is found by another one.

    vLLM up to 0.28 draws their seed anew in each process, unless `PYTHONHASHSEED` is set. Later ones have a
    seed of their own for hashes that withstand collisions, and warn themselves of those that do not.
    """
    from vllm.v1.core import kv_cache_utils

    if "PYTHONHASHSEED" in os.environ or hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED"):
        return
    logger.warning(
        "kvtier: PYTHONHASHSEED is not set and this vLLM's block hashes are random in each process, so what "
        "lies on disk is never found after a restart nor by another replica; set it to the same value for "
        "all servers, at every start"
    )


def _parallel(parallel: Parallel) -> str:
    sizes = (
        f"tp{parallel.tensor} pp{parallel.pipeline} "
        f"pcp{parallel.prefill_context} dcp{parallel.decode_context}"
    )
    if parallel.pipeline == 1:
        return sizes
    # The groups are those of the first stage; how the others divide the rest of the layers only this says.
    return f"{sizes} layers {os.environ.get('VLLM_PP_LAYER_PARTITION', 'by default')}"


def _weights(model: str) -> dict[str, str]:
    """A fingerprint of the weights; where it is not known which ones run, nobody shares them.

    vLLM does not tell a plugin the revision, so of a model of the hub all local snapshots come into
    question: with more than one, sharing chunks by name could serve the KV of other weights.
    """
    snapshots = [Path(model)] if os.path.isdir(model) else _snapshots(model)
    if len(snapshots) == 1:
        return {"weights": weights_fingerprint(snapshots[0])}
    logger.warning(
        "kvtier: %s has %d local snapshots and nothing says which one runs, so chunks are not reused "
        "after a restart; give the model as the path of its directory",
        model,
        len(snapshots),
    )
    return {"weights": "unknown", **one_process()}


def _kv_dtype(dtype: str) -> dict[str, str]:
    if dtype != "auto":
        return {"kv_dtype": dtype}
    logger.warning(
        "kvtier: this vLLM does not say which type keys and values have, so chunks are not reused after a "
        "restart; name it with --kv-cache-dtype, or use vLLM 0.27 or newer"
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
