"""Raw caches of known arrangements are rows of blocks; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvtier.factory.vllm.generations.raw import raw_gpu_tier
from kvtier.tiers.device.copyplan import Spans
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.errors import ConfigError

BLOCKS, TOKENS, HEADS, SIZE = 6, 16, 2, 4
PAGE = TOKENS * HEADS * SIZE  # elements


class Backend:
    """An attention backend: where its caches have which axis, and in which order they lie in memory."""

    def __init__(self, axes: str, order: tuple[int, ...] = ()) -> None:
        self._axes = axes
        self._order = order

    def get_name(self) -> str:
        return "ODD_ATTN"

    def get_kv_cache_shape(self, **sizes: int) -> tuple[int, ...]:
        sizes = {"n": sizes["num_blocks"], "t": sizes["block_size"], "h": sizes["num_kv_heads"], "2": 2} | {
            "s": sizes["head_size"]
        }
        return tuple(sizes[axis] for axis in self._axes)

    def get_kv_cache_stride_order(self, include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        assert include_num_layers_dimension
        return self._order


def tier(cache: Any, backend: Backend) -> GpuTier:
    return raw_gpu_tier({"layer": cache}, {"layer": backend}, num_blocks=BLOCKS, blocks_per_chunk=1)


def copied(gpu: GpuTier, block: int, elements: int) -> list[float]:
    """What a store of one block writes."""
    chunk = torch.zeros(elements)
    job = gpu.submit_store(Spans(torch.tensor([block]).numpy(), (1,), (0,)), _address(chunk))
    job.wait(None)
    gpu.close_now()
    return [float(value) for value in chunk.unique()]


def _address(chunk: torch.Tensor) -> Any:
    return torch.tensor([chunk.data_ptr()]).numpy()


def numbered(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """A cache whose elements are the numbers of their blocks."""
    number = torch.arange(shape[axis], dtype=torch.float32)
    return number.view([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape).contiguous()


def test_blocks_first() -> None:
    gpu = tier(numbered((BLOCKS, 2, TOKENS, HEADS, SIZE), 0), Backend("n2ths"))
    assert gpu.part_bytes == 2 * PAGE * 4
    assert copied(gpu, 3, 2 * PAGE) == [3.0]


def test_latent_attention_has_no_keys_and_values_apart() -> None:
    gpu = tier(numbered((BLOCKS, TOKENS, SIZE), 0), Backend("nts"))
    assert copied(gpu, 2, TOKENS * SIZE) == [2.0]


def test_keys_and_values_apart() -> None:
    gpu = tier(numbered((2, BLOCKS, TOKENS, HEADS, SIZE), 1), Backend("2nths"))
    assert gpu.part_bytes == 2 * PAGE * 4
    assert copied(gpu, 5, 2 * PAGE) == [5.0]


def test_heads_before_tokens_in_memory() -> None:
    cache = numbered((2, BLOCKS, HEADS, TOKENS, SIZE), 1).transpose(2, 3)
    assert copied(tier(cache, Backend("2nths")), 4, 2 * PAGE) == [4.0]


def test_a_block_of_several_kernel_blocks() -> None:
    cache = numbered((2, BLOCKS * 4, TOKENS // 4, HEADS, SIZE), 1)
    assert copied(tier(cache, Backend("2nths")), 1, 2 * PAGE) == [4.0, 5.0, 6.0, 7.0]


def test_all_layers_in_one_tensor() -> None:
    cache = numbered((BLOCKS, 3, 2, TOKENS, HEADS, SIZE), 0)
    assert copied(tier(cache, Backend("2nths", (2, 0, 1, 3, 4, 5))), 1, 6 * PAGE) == [1.0]


def test_layers_that_share_a_tensor_are_copied_once() -> None:
    cache, backend = numbered((BLOCKS, 2, TOKENS, HEADS, SIZE), 0), Backend("n2ths")
    gpu = raw_gpu_tier(
        {"a": cache, "b": cache}, {"a": backend, "b": backend}, num_blocks=BLOCKS, blocks_per_chunk=1
    )
    assert gpu.part_bytes == 2 * PAGE * 4
    gpu.close_now()


@pytest.mark.parametrize(
    ("cache", "axes"),
    [
        (torch.zeros(3, BLOCKS, TOKENS, SIZE), "hnts"),
        (torch.zeros(2, HEADS, BLOCKS, TOKENS, SIZE), "2hnts"),
        (torch.zeros(2, BLOCKS, TOKENS, HEADS, SIZE * 2)[..., :SIZE], "2nths"),
        (torch.zeros(2, BLOCKS + 1, TOKENS, HEADS, SIZE), "2nths"),
        (torch.zeros(BLOCKS, PAGE), "2nths"),
        ([torch.zeros(BLOCKS, PAGE)], "2nths"),
    ],
    ids=["heads first", "blocks third", "padded", "odd count", "two axes", "a state"],
)
def test_other_arrangements_are_refused_by_name(cache: Any, axes: str) -> None:
    with pytest.raises(ConfigError, match=r"cache of layer.*ODD_ATTN"):
        tier(cache, Backend(axes))
