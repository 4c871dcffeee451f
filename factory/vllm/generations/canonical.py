"""Reads what vLLM 0.21 and newer give a worker: tensors whose rows are blocks, and specs of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ....tiers.device.copyplan import Spans
from ....tiers.device.gpu import GpuTier

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec


def gpu_tier(kv_caches: CanonicalKVCaches, blocks_per_chunk: int) -> GpuTier:
    """Take the server's tensors as the device's tier."""
    return GpuTier.of_tensors(
        [tensor.tensor for tensor in kv_caches.tensors],
        blocks_per_chunk=blocks_per_chunk,
        groups=[
            [(ref.tensor_idx, ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs
        ],
    )


def spans(spec: GPULoadStoreSpec) -> Spans:
    """The blocks that a transfer reads or writes on the device."""
    # The ids are int64 up to 0.29 and int32 after.
    return Spans(spec.block_ids.astype(np.int64), tuple(spec.group_sizes), tuple(spec.block_indices))
