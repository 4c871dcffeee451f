"""The plugin for vLLM 0.19: the managers of 0.18, with tensors whose rows are blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .b import PromptSpec
from .canonical import gpu_tier
from .handler import Handler

if TYPE_CHECKING:
    from vllm.v1.kv_offload.spec import CanonicalKVCaches


class CompositeOffloadingSpec(PromptSpec):
    """One offloading spec for the whole chain of a tier config; one group of layers with full attention."""

    def get_handlers(self, kv_caches: CanonicalKVCaches) -> Iterator[tuple[type[Any], type[Any], Handler]]:
        return self.handlers_over(gpu_tier(kv_caches, self.blocks_per_chunk))
