"""How vLLM lays a model's KV out in blocks, and how large a chunk of it is.

Layers of one kind are one group. Sliding layers beside full ones make several groups of equally many layers,
each with blocks of its own; a chunk is some blocks of one group. So it stands for fewer tokens of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...tiers import ConfigError
from ..base import PART_ALIGNMENT_BYTES
from .model import START_LINE, Model

BLOCK_TOKENS = 16  # vLLM's own choice on a GPU
LATENT_BLOCK_TOKENS = 64  # the same for latent attention, with most of its kernels
CHUNK_BYTES_MIN = 256 << 10  # smaller ones leave much of a drive's speed unused: docs/performance.md
EVEN_ENOUGH = 1.5  # vLLM: groups as large as the larger kind, where that is less than so many times the other


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a server divides the model.

    Attributes:
        one_group: it runs with --disable-hybrid-kv-cache-manager.
    """

    tensor: int = 1
    pipeline: int = 1
    one_group: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one server.

    Attributes:
        block_tokens: tokens of one block.
        groups_count: groups of layers, each of which has blocks of its own.
        rank_block_bytes: one rank's bytes of one block.
        parts: ranks whose bytes a chunk holds; one where all ranks hold the same.
    """

    block_tokens: int
    groups_count: int
    rank_block_bytes: int
    parts: int

    def chunk_bytes(self, blocks_per_chunk: int) -> int:
        """Of so many blocks, as slots and extents keep them: each rank's part in whole pages."""
        part_bytes = self.rank_block_bytes * blocks_per_chunk
        return self.parts * -(-part_bytes // PART_ALIGNMENT_BYTES) * PART_ALIGNMENT_BYTES

    def chunk_tokens(self, blocks_per_chunk: int) -> float:
        """How many tokens of all layers a chunk stands for."""
        return self.block_tokens * blocks_per_chunk / self.groups_count

    @property
    def block_bytes(self) -> int:
        """Of one block, in all parts."""
        return self.rank_block_bytes * self.parts

    @property
    def token_bytes(self) -> float:
        """Of one token in the tiers below the device."""
        return self.block_bytes * self.groups_count / self.block_tokens

    @property
    def rank_token_bytes(self) -> float:
        """Of one token on one rank's device."""
        return self.rank_block_bytes * self.groups_count / self.block_tokens

    @property
    def blocks_per_chunk(self) -> int:
        """How many blocks a chunk should have: as few as make it large enough for a drive."""
        blocks = 1
        while self.chunk_bytes(blocks) < CHUNK_BYTES_MIN:
            blocks *= 2
        return blocks


def layout_of(model: Model, parallel: Parallel, *, block_tokens: int | None = None) -> Layout:
    """Lay a model out over ranks.

    Args:
        block_tokens: the server's --block-size; None for its own choice.

    Raises:
        ConfigError: the model cannot be divided so.
    """
    _refuse_uneven(model, parallel)
    own = LATENT_BLOCK_TOKENS if model.is_latent else BLOCK_TOKENS
    tokens = own if block_tokens is None else block_tokens
    counts = [layers.count for layers in model.layers]
    if len(counts) == 1 or parallel.one_group or model.is_chunked:
        group_layers, groups_count = sum(counts), 1
    else:
        group_layers = _group_layers(counts)
        groups_count = sum(-(-count // group_layers) for count in counts)
    if group_layers % parallel.pipeline:
        raise ConfigError(
            "--pipeline-parallel-size",
            f"the groups of {group_layers} layers cannot be divided evenly into {parallel.pipeline} stages; "
            f"{START_LINE}",
        )
    layer_bytes = model.layers[0].rank_elements(parallel.tensor) * model.element_bytes * tokens
    return Layout(
        block_tokens=tokens,
        groups_count=groups_count,
        rank_block_bytes=group_layers // parallel.pipeline * layer_bytes,
        parts=1 if model.is_latent and parallel.pipeline == 1 else parallel.ranks,
    )


def _group_layers(counts: list[int]) -> int:
    """Layers of each group, the last of a kind filled up."""
    least, most = min(counts), max(counts)
    return most if most < least * EVEN_ENOUGH else least


def _refuse_uneven(model: Model, parallel: Parallel) -> None:
    heads, tensor = model.layers[0].heads, parallel.tensor
    if not model.is_latent and heads % tensor and tensor % heads:
        raise ConfigError(
            "--tensor-parallel-size",
            f"{model.name} has {heads} KV heads, which cannot be divided among {tensor} ranks, nor repeated",
        )
    if model.layers_count % parallel.pipeline:
        raise ConfigError(
            "--pipeline-parallel-size",
            f"{model.name} has {model.layers_count} layers; all stages have to hold equally many",
        )
