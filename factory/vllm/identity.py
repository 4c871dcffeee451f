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

from ...tiers.identity import weights_fingerprint
from .facts import ServerFacts

logger = logging.getLogger(__name__)


def identity_fields(facts: ServerFacts) -> Mapping[str, str]:
    """The namespace of a server's chunks.

    Two servers share chunks exactly if all of these are equal. vLLM's block hashes cover the tokens, the
    adapter, multi-modal inputs and the salt; this covers everything else.
    """
    parallel = facts.parallel
    groups = [f"{g.index}:{g.tokens_per_block}tok:{','.join(g.layer_names)}" for g in facts.groups]
    return {
        "server": f"vllm {'.'.join(vllm.__version__.split('.')[:2])}",
        "model": facts.model,
        "weights": _weights(facts.model),
        "kv_dtype": facts.kv_dtype,
        "kv_layout": facts.kv_layout,
        "bytes_per_block": str(facts.rank_block_bytes),
        "blocks_per_chunk": str(facts.blocks_per_chunk),
        "tokens_per_hash": str(facts.tokens_per_hash),
        "groups": " ".join(groups),
        "parallel": f"tp{parallel.tensor} pp{parallel.pipeline} "
        f"pcp{parallel.prefill_context} dcp{parallel.decode_context}",
        "replicated": str(facts.is_replicated),
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
