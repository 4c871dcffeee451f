"""What a worker gets before vLLM 0.19: each layer's tensor as its attention backend wants it.

vLLM does not say where in such a tensor a block lies, so only arrangements are taken that are known:

- blocks first: the bytes of a block lie together, as with Triton, FlashInfer and MLA;
- keys and values apart: two halves, each with its blocks first, as with FlashAttention and on CPUs;
- all layers in one tensor, its blocks first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....tiers.device.gpu import GpuTier
from ....tiers.device.tensors import Tensor
from ....tiers.errors import ConfigError

# Numbers that no other axis of a cache has, to find these axes by.
_BLOCKS = 1_234
_SHAPE = {"num_blocks": _BLOCKS, "block_size": 16, "num_kv_heads": 8, "head_size": 256}

_WHERE = "spec_module_path"


def raw_gpu_tier(
    kv_caches: Mapping[str, Any],
    backends: Mapping[str, Any],
    *,
    num_blocks: int,
    blocks_per_chunk: int,
) -> GpuTier:
    """Take the server's tensors as the device's tier.

    Raises:
        ConfigError: a tensor is arranged in a way that kvtier does not know; the message names the backend.
    """
    rows: dict[int, Tensor] = {}
    for layer, cache in kv_caches.items():
        for tensor in _rows(layer, cache, backends[layer], num_blocks):
            rows.setdefault(tensor.data_ptr(), tensor)  # layers may share a tensor
    return GpuTier.of_tensors(list(rows.values()), blocks_per_chunk=blocks_per_chunk)


def _rows(layer: str, cache: Any, backend: Any, num_blocks: int) -> Iterator[Tensor]:
    """Yield tensors of (num_blocks, elements of a block)."""
    if not isinstance(cache, Tensor):
        raise _unknown(layer, backend, f"is a {type(cache).__name__}")
    shape = backend.get_kv_cache_shape(**_SHAPE)
    axis = shape.index(_BLOCKS)
    if cache.dim() == len(shape) + 1:  # all layers; the axes are in the order of memory already
        order = backend.get_kv_cache_stride_order(include_num_layers_dimension=True)
        axis, memory = order.index(axis + 1), cache
    elif cache.dim() == len(shape):
        axes = sorted(range(cache.dim()), key=cache.stride().__getitem__, reverse=True)
        axis, memory = axes.index(axis), cache.permute(axes)
    else:
        raise _unknown(layer, backend, f"has {cache.dim()} axes")
    if not memory.is_contiguous() or memory.shape[axis] % num_blocks:
        raise _unknown(layer, backend, f"has shape {tuple(cache.shape)} and strides {cache.stride()}")
    if axis == 0:
        yield memory.view(num_blocks, -1)
    elif axis == 1 and memory.shape[0] == 2:
        yield from memory.view(2, num_blocks, -1).unbind(0)
    else:
        raise _unknown(layer, backend, f"has shape {tuple(cache.shape)} and strides {cache.stride()}")


def _unknown(layer: str, backend: Any, what: str) -> ConfigError:
    name = backend.get_name() if hasattr(backend, "get_name") else backend.__name__
    return ConfigError(
        _WHERE,
        f"on this vLLM kvtier does not know where the blocks lie in the cache of {layer}, which {what} with "
        f"the attention backend {name}; choose another backend, or use vLLM 0.21 or newer",
    )
