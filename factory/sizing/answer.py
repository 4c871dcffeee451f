"""What `kvtier explain` answers: a document, seen with the eyes of one model on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..base import TierConfig, unique_name
from ..config import KvtierConfig
from ..entries import NvmeConfig, PinnedConfig
from ..room import Room, cap_of
from ..text.units import format_size
from .held import Held, chunks_in_log, held
from .here import Here, look_here
from .layout import CHUNK_BYTES_MIN, Layout, Parallel
from .measured import remembered
from .model import Model
from .speed import DRIVE_BYTES_PER_S, PINNED_BYTES_PER_S, Speed


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked beside document and model.

    Attributes:
        blocks_per_chunk: what the server gets; None for what is recommended.
        gpu_bytes: memory of one GPU; None where it is not known.
        weights_bytes: of the whole model; None where they are not known.
        load_bytes_per_s: of the drives together; None for what was measured, or is assumed.
    """

    blocks_per_chunk: int | None = None
    gpu_bytes: int | None = None
    gpu_utilization: float = 0.9
    weights_bytes: int | None = None
    prompt_tokens: int = 8_000
    prefix_tokens: int = 32_768
    load_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class TierAnswer:
    """One tier below the device.

    Attributes:
        wanted: by the capacity in the document; None where only the machine it is for can tell.
        here: of that, what this machine's drives have room for; None where they cannot be used.
        bound_by: what keeps it from being more.
        load_s: how long the prefix that was asked about takes from there; None where nobody can say.
    """

    name: str
    wanted: Held | None
    here: Held | None
    bound_by: str | None
    speed: Speed | None
    load_s: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """All of it.

    Attributes:
        gpu_tokens: of KV that the devices hold themselves; None where it cannot be told.
        assumed: what was taken for granted.
        missing: what this machine lacks for the document.
        warnings: what will disappoint, each with its fix.
    """

    model: Model
    parallel: Parallel
    layout: Layout
    question: Question
    blocks_per_chunk: int
    gpu_tokens: int | None
    tiers: tuple[TierAnswer, ...]
    assumed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def chunk_bytes(self) -> int:
        return self.layout.chunk_bytes(self.blocks_per_chunk)

    @property
    def chunk_tokens(self) -> float:
        return self.layout.chunk_tokens(self.blocks_per_chunk)


def answer(
    config: KvtierConfig, model: Model, parallel: Parallel, layout: Layout, question: Question
) -> Answer:
    """Work everything out; looks at this machine for what the document leaves to it, and changes nothing."""
    blocks_per_chunk = question.blocks_per_chunk or layout.blocks_per_chunk
    chunk_bytes = layout.chunk_bytes(blocks_per_chunk)
    here = look_here(config, chunk_bytes)
    answers = tuple(_answers(here, layout, question, blocks_per_chunk))
    gpu_tokens = _gpu_tokens(layout, parallel, question)
    whole = Answer(
        model, parallel, layout, question, blocks_per_chunk, gpu_tokens, answers, missing=here.missing
    )
    return replace(whole, assumed=tuple(_assumed(whole)), warnings=tuple(_warnings(whole)))


def _answers(here: Here, layout: Layout, question: Question, blocks_per_chunk: int) -> Iterator[TierAnswer]:
    chunk_bytes, chunk_tokens = layout.chunk_bytes(blocks_per_chunk), layout.chunk_tokens(blocks_per_chunk)

    def holding(size_bytes: int, chunks: int) -> Held:
        return held(size_bytes, chunks, chunk_tokens=chunk_tokens, prompt_tokens=question.prompt_tokens)

    names: list[str] = []
    for i, tier in enumerate(here.tiers):
        names.append(unique_name(tier.type, names))
        rooms = here.rooms.get(i, ())
        cap = cap_of(rooms) if rooms else None
        speed = _speed(tier, question)
        # Each rank copies its own part over its own link; a drive reads the parts of all.
        token_bytes = layout.rank_token_bytes if isinstance(tier, PinnedConfig) else layout.token_bytes
        yield TierAnswer(
            name=names[-1],
            wanted=_wanted(tier, chunk_bytes, holding),
            here=None if cap is None else holding(cap.size_bytes, _chunks_here(rooms, chunk_bytes)),
            bound_by=None if cap is None else cap.bound_by,
            speed=speed,
            load_s=None if speed is None else speed.seconds(question.prefix_tokens * token_bytes),
        )


def _wanted(tier: TierConfig, chunk_bytes: int, holding: Callable[[int, int], Held]) -> Held | None:
    if isinstance(tier, PinnedConfig):
        size = tier.capacity
        return holding(size, size // chunk_bytes) if isinstance(size, int) else None
    capacities = _capacities(tier)
    if capacities is None:
        return None
    return holding(sum(capacities), sum(chunks_in_log(size, size, chunk_bytes) for size in capacities))


def _chunks_here(rooms: Sequence[Room], chunk_bytes: int) -> int:
    return sum(
        0 if room.is_none else chunks_in_log(room.capacity_bytes, room.cap_bytes, chunk_bytes)
        for room in rooms
    )


def _capacities(tier: TierConfig) -> list[int] | None:
    """The capacity of each drive; None where only the machine that the document is for can tell it."""
    if isinstance(tier, NvmeConfig):
        capacities = [drive.capacity for drive in tier.drives if isinstance(drive.capacity, int)]
        return capacities if len(capacities) == len(tier.drives) else None
    return None


def _speed(tier: TierConfig, question: Question) -> Speed | None:
    if isinstance(tier, PinnedConfig):
        return Speed(PINNED_BYTES_PER_S, "assumed")
    if not isinstance(tier, NvmeConfig):
        return None
    if question.load_bytes_per_s is not None:
        return Speed(question.load_bytes_per_s, "given")
    found = [remembered(drive.path) for drive in tier.drives]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return Speed(DRIVE_BYTES_PER_S * len(found), "assumed")
    day = time.strftime("%Y-%m-%d", time.localtime(min(one.measured_unix_s for one in known)))
    return Speed(sum(one.load_bytes_per_s for one in known), f"measured by kvtier bench, {day}")


def _gpu_tokens(layout: Layout, parallel: Parallel, question: Question) -> int | None:
    if question.gpu_bytes is None or question.weights_bytes is None:
        return None
    room_bytes = question.gpu_bytes * question.gpu_utilization - question.weights_bytes / parallel.ranks
    return max(0, int(room_bytes / layout.rank_token_bytes))


def _assumed(found: Answer) -> Iterator[str]:
    yield from found.model.assumed
    if not found.model.is_known:
        yield f"{found.model.name} is not known to kvtier; taken as a model with the usual fields"
    if found.gpu_tokens is not None:
        yield "what activations and CUDA graphs take of a GPU is not taken off: it holds fewer tokens"
    if found.layout.groups_count > 1:
        yield (
            f"vLLM keeps its layers in {found.layout.groups_count} groups, as it does unless it is told "
            "--disable-hybrid-kv-cache-manager; chunks of old tokens of sliding layers count as held"
        )


def _warnings(found: Answer) -> Iterator[str]:
    if found.chunk_bytes < CHUNK_BYTES_MIN:
        yield (
            f"chunks of {format_size(found.chunk_bytes)} leave much of a drive's speed unused; "
            f"blocks_per_chunk {found.layout.blocks_per_chunk} makes them "
            f"{format_size(found.layout.chunk_bytes(found.layout.blocks_per_chunk))}"
        )
    if found.gpu_tokens == 0:
        yield "the weights leave a GPU no room for KV"
    pinned = found.tiers[0].wanted
    if pinned is not None and found.gpu_tokens is not None and pinned.tokens <= found.gpu_tokens:
        enough = format_size(int(2 * found.gpu_tokens * found.layout.token_bytes))
        yield (
            f"pinned holds {pinned.tokens:,} tokens, not more than the GPU itself ({found.gpu_tokens:,}): "
            f"what it has, the GPU mostly has too, so it adds few hits; twice the GPU's are {enough}"
        )
    for tier in found.tiers:
        if tier.wanted is not None and not tier.wanted.chunks:
            yield (
                f"{tier.name} holds nothing: {format_size(tier.wanted.capacity_bytes)} is too small for "
                f"chunks of {format_size(found.chunk_bytes)}"
            )
