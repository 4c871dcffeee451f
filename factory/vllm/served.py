"""How a server serves its model, where that differs from the model's files.

Up to 0.25 vLLM hands its config to a plugin. From 0.26 on it does not, but its workers run under a current
config, and report it to the scheduler through the arena (`Plugin`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...tiers.nvme.store.namespaces import one_process


def served_fields(vllm_config: Any) -> Mapping[str, str]:
    """The namespace fields that differ between servers of one model; none if all is at its default."""
    return dict(_changes(vllm_config))


def served_here() -> Mapping[str, str] | None:
    """The same for this worker's server; None in a process that is not a worker."""
    from vllm.config import get_current_vllm_config_or_none

    current = get_current_vllm_config_or_none()
    return None if current is None else served_fields(current)


def _changes(vllm_config: Any) -> Iterator[tuple[str, str]]:
    model, cache, load = vllm_config.model_config, vllm_config.cache_config, vllm_config.load_config
    if getattr(model, "hf_overrides", None) or getattr(model, "hf_config_path", None):
        yield "hf_config", _digest(model.hf_config.to_json_string())
    if model.quantization and not getattr(model.hf_config, "quantization_config", None):
        yield "quantization", str(model.quantization)
    if cache.cache_dtype != "auto":  # else keys and values are of this type
        yield "compute_dtype", str(model.dtype).removeprefix("torch.")
    if getattr(cache, "calculate_kv_scales", False):  # from the first prompts that a process sees
        yield from one_process().items()
    load_format = str(getattr(load.load_format, "value", load.load_format))
    if load_format == "dummy":
        yield "weights_made_of", f"dummy, seed {model.seed}"
    elif load.model_loader_extra_config:
        extra = json.dumps(load.model_loader_extra_config, sort_keys=True, default=repr)
        yield "weights_read_by", f"{load_format} {_digest(extra)}"
    draft = getattr(vllm_config, "speculative_config", None)
    if draft is not None:
        yield "draft", f"{draft.method} {getattr(draft, 'model', None)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
