"""What a user passes for KV tensors and block ids: made uniform, or refused with what to pass instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from .copyplan import Addresses

Tensor: TypeAlias = torch.Tensor
Tensors: TypeAlias = Iterable[Tensor] | Mapping[str, Tensor]
BlockIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor


def listed_tensors(tensors: Tensors) -> list[Tensor]:
    """The tensors of a list, a generator or a mapping by layer.

    Raises:
        ValueError: they are not tensors, or none.
    """
    if isinstance(tensors, torch.Tensor):
        raise ValueError(f"KV tensors go in a list, [tensor]; this is one of shape {tuple(tensors.shape)}")
    if isinstance(tensors, np.ndarray) or not isinstance(tensors, Iterable):
        raise ValueError(f"KV tensors go in a list of torch tensors, not in a {type(tensors).__name__}")
    listed = list(tensors.values() if isinstance(tensors, Mapping) else tensors)
    for index, tensor in enumerate(listed):
        if isinstance(tensor, np.ndarray):
            raise ValueError(
                f"tensor {index} is a numpy array; pass torch.from_numpy(array), which shares it"
            )
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"tensor {index} is no torch tensor but a {type(tensor).__name__}")
    if not listed:
        raise ValueError("no KV tensors were given")
    return listed


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors whose rows cannot be copied.

    Raises:
        ValueError: which, and why.
    """
    if not tensors:
        raise ValueError("no KV tensors were given")
    for index, tensor in enumerate(tensors):
        _check_tensor(index, tensor, tensors[0])


def check_rows_are_blocks(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors whose rows are not the blocks of one cache, as far as that shows.

    Raises:
        ValueError: which, and what to pass instead.
    """
    for index, tensor in enumerate(tensors):
        shape = tuple(tensor.shape)
        if _is_keys_and_values(tensor):
            raise ValueError(
                f"tensor {index} has shape {shape}: its blocks seem to lie along the second axis, after keys "
                "and values; pass [kv[0], kv[1]]"
            )
        if shape[:1] != tensors[0].shape[:1]:
            raise ValueError(
                f"tensor {index} has shape {shape} and tensor 0 {tuple(tensors[0].shape)}: block i is row i "
                "of every tensor, so all need equally many rows"
            )


def check_blocks_per_chunk(count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"blocks_per_chunk must be a whole number, not {count!r}")
    if count < 1:
        raise ValueError(f"blocks_per_chunk must be at least 1, not {count}")


def whole_numbers(block_ids: BlockIds) -> Addresses:
    """Block ids as an array; those of a tensor on a device are waited for.

    Raises:
        ValueError: they are not whole numbers.
    """
    if isinstance(block_ids, torch.Tensor):
        block_ids = block_ids.detach().cpu().numpy()
    if not isinstance(block_ids, Iterable):
        raise ValueError(f"block ids must be whole numbers in a list or array, not {block_ids!r}")
    if not isinstance(block_ids, np.ndarray):
        return _array([_number(block_id) for block_id in block_ids])
    if not issubclass(block_ids.dtype.type, np.integer):
        raise ValueError(f"block ids must be whole numbers, not {block_ids.dtype}")
    return _array(block_ids)


def _number(block_id: Any) -> int:
    if isinstance(block_id, torch.Tensor) and block_id.numel() == 1:
        block_id = block_id.item()
    if not isinstance(block_id, int | np.integer) or isinstance(block_id, bool):
        raise ValueError(f"block ids must be whole numbers, not {type(block_id).__name__}")
    return int(block_id)


def _array(block_ids: list[int] | npt.NDArray[np.integer[Any]]) -> Addresses:
    try:
        return np.asarray(block_ids, np.int64).reshape(-1)
    except OverflowError as error:
        raise ValueError(f"block ids must be blocks on the device: {error}") from error


def _check_tensor(index: int, tensor: Tensor, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(
            f"tensor {index} is on {tensor.device} and tensor 0 on {first.device}; all must be on one device"
        )
    if tensor.dim() < 2 or not tensor.numel():
        raise ValueError(
            f"tensor {index} has shape {tuple(tensor.shape)}; it must be (num_blocks, ...) with no empty axis"
        )
    if tensor.layout is not torch.strided:
        raise ValueError(f"tensor {index} has no rows in memory: its layout is {tensor.layout}")
    if not tensor[0].is_contiguous():
        raise ValueError(
            f"tensor {index}: a block (one row) is not contiguous, with strides {tensor.stride()}"
        )
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor[0].numel():
        raise ValueError(f"tensor {index}: its blocks overlap, with strides {tensor.stride()}")


def _is_keys_and_values(tensor: Tensor) -> bool:
    """Whether it looks like (2, num_blocks, …) in memory, be it as a view (num_blocks, 2, …)."""
    if tensor.layout is not torch.strided or tensor.dim() < 4:
        return False
    first, second = tensor.shape[:2]
    return (first == 2 and second > 2) or (first > 2 and second == 2 and tensor.stride(1) > tensor.stride(0))
