"""Plans copies between device blocks and slots: pure arithmetic on addresses.

A slot holds one rank's chunk tensor by tensor, and each tensor block by block:

    | tensor 0: block 0, block 1, … | tensor 1: block 0, block 1, … | …

so blocks of a tensor that are adjacent on the device stay adjacent, and go in one run. A KV-cache group that
uses only some of the tensors, or some bytes of each row, leaves the rest of its chunk untouched. vLLM's own
CPU tier has the same layout, so both can read each other's chunks. No run crosses the end of its chunk: a
device refuses one that crosses from one page-locked piece of memory into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Addresses = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """One tensor: block b is the row at `base + b * stride_bytes`.

    Attributes:
        row_bytes: what a row takes in a slot; its stride may be longer.
        count: how many rows, and so blocks, there are.
    """

    base: int
    stride_bytes: int
    row_bytes: int
    count: int


class Page(NamedTuple):
    """What one KV-cache group uses of a tensor: the leading bytes of each row."""

    tensor: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Spans:
    """The device blocks of one transfer: for each KV-cache group a run of logically consecutive blocks.

    Attributes:
        block_ids: the blocks of all groups, one group after the other.
        group_sizes: how many of them belong to each group.
        block_indices: each group's first block, counted in blocks from the start of its request; it
            decides how far into its first chunk the group begins.
    """

    block_ids: Addresses
    group_sizes: Sequence[int]
    block_indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Runs of bytes, each (device address, host address, size), in one array each.

    Attributes:
        size_bytes: their sum.
    """

    device: Addresses
    host: Addresses
    sizes: Addresses
    size_bytes: int


class _Group:
    """One group's pages as columns, ready for broadcasting over blocks."""

    def __init__(self, tensors: Sequence[Rows], pages: Sequence[Page], offsets: Addresses) -> None:
        rows = [tensors[page.tensor] for page in pages]
        self.base = _column([row.base for row in rows])
        self.stride = _column([row.stride_bytes for row in rows])
        self.row = _column([row.row_bytes for row in rows])
        self.page = _column([page.page_bytes for page in pages])
        self.offset = _column([offsets[page.tensor] for page in pages])  # where the tensor begins in a chunk
        self.block_bytes = int(self.page.sum())
        self.blocks = min(row.count for row in rows)


def _column(values: Sequence[int]) -> Addresses:
    return np.array(values, np.int64)[:, None]


class KVLayout:
    """Where the blocks of every KV-cache group lie on the device, and where they go in a slot."""

    def __init__(
        self, tensors: Sequence[Rows], groups: Sequence[Sequence[Page]], blocks_per_chunk: int
    ) -> None:
        assert groups, "a cache has at least one group"
        assert all(groups), "a group has at least one tensor"
        assert blocks_per_chunk > 0, "a chunk has at least one block"
        self.blocks_per_chunk = blocks_per_chunk
        extents = np.array([rows.row_bytes * blocks_per_chunk for rows in tensors], np.int64)
        self.part_bytes = int(extents.sum())  # what a slot must have for one rank
        self._groups = [_Group(tensors, pages, np.cumsum(extents) - extents) for pages in groups]

    def plan(self, spans: Spans, chunk_addresses: Addresses) -> CopyPlan:
        """Plan one transfer.

        Args:
            spans: the device blocks.
            chunk_addresses: where in host memory each chunk begins that the spans touch, in their order.

        Raises:
            ValueError: a block id is not on the device, or the chunks do not match the blocks.
        """
        device, host, sizes, begins = [], [], [], []
        size_bytes = first_block = first_chunk = 0
        for group, count, index in zip(self._groups, spans.group_sizes, spans.block_indices, strict=True):
            if not count:
                continue
            ids = spans.block_ids[first_block : first_block + count]
            _check_ids(ids, group.blocks)
            logical = np.arange(index, index + count)
            chunk = logical // self.blocks_per_chunk - index // self.blocks_per_chunk
            first_block, used_from, first_chunk = (
                first_block + count,
                first_chunk,
                first_chunk + chunk[-1] + 1,
            )
            if first_chunk > len(chunk_addresses):
                raise ValueError(
                    f"the blocks span at least {first_chunk} chunks, but {len(chunk_addresses)} were given"
                )
            within = group.row * (logical % self.blocks_per_chunk)
            device.append((group.base + ids * group.stride).ravel())
            host.append((chunk_addresses[used_from + chunk] + group.offset + within).ravel())
            shape = len(group.page), count
            sizes.append(np.broadcast_to(group.page, shape).ravel())
            begins.append(np.broadcast_to(logical % self.blocks_per_chunk == 0, shape).ravel())
            size_bytes += count * group.block_bytes
        if first_block != len(spans.block_ids) or first_chunk != len(chunk_addresses):
            raise ValueError(
                f"the groups name {first_block} blocks in {first_chunk} chunks; "
                f"{len(spans.block_ids)} block ids and {len(chunk_addresses)} chunks were given"
            )
        if not device:
            return CopyPlan(_NOTHING, _NOTHING, _NOTHING, 0)
        runs = _merged(*map(np.concatenate, (device, host, sizes, begins)))
        return CopyPlan(*runs, size_bytes)


_NOTHING = np.empty(0, np.int64)


def _check_ids(ids: Addresses, blocks: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= blocks:
        raise ValueError(
            f"block {low if low < 0 else high} is not on the device, which has blocks 0 to {blocks - 1}"
        )


def _merged(
    device: Addresses, host: Addresses, sizes: Addresses, begins: NDArray[np.bool_]
) -> tuple[Addresses, Addresses, Addresses]:
    """Join each run to the one before it if it follows on both sides and does not begin a chunk."""
    follows = (device[:-1] + sizes[:-1] == device[1:]) & (host[:-1] + sizes[:-1] == host[1:]) & ~begins[1:]
    if not follows.any():
        return device, host, sizes
    starts = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    return device[starts], host[starts], np.add.reduceat(sizes, starts)
