"""The shapes of what the commands that plan print with `--json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....engine.replay.replay import ReplayFigures, TierFigures


@dataclass(frozen=True, slots=True)
class DriveRoom:
    """The room of one drive of a document.

    Attributes:
        place: where its path stands in the document.
        mount: the file system, for people.
        own_bytes: what the directory takes already.
        cap_bytes: what it can take as things are.
        bound_by: what keeps it from taking more: its capacity, the free space, or other tiers.
    """

    place: str
    path: str
    mount: str
    capacity_bytes: int
    reserve_bytes: int
    file_system_bytes: int
    free_bytes: int
    own_bytes: int
    cap_bytes: int
    bound_by: str


@dataclass(frozen=True, slots=True)
class Check:
    """A document as this machine resolves it, the room of its drives, and what is probably a mistake."""

    document: dict[str, Any]
    drives: tuple[DriveRoom, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayTier(TierFigures):
    """What one tier did."""

    capacity_chunks: int


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A replay with another capacity of one tier; `tiers` has the hit rate of each."""

    capacity_bytes: int
    hit_rate_percent: float
    tiers: dict[str, float]
    drives_written_bytes: int


@dataclass(frozen=True, slots=True)
class ReplaySweep:
    """Replays with other capacities of one tier.

    Attributes:
        knee_bytes: from which on each doubling adds less than a point of hit rate; null where each adds more.
    """

    tier: str
    knee_bytes: int | None
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True, slots=True)
class ReplayAlternative:
    """What another chain would save; null where the trace or the options do not say enough."""

    name: str
    hit_rate_percent: float
    saved_tokens: int
    saved_prefill_s_a_day: float | None
    drives_written_bytes_a_day: float | None


@dataclass(frozen=True, slots=True)
class Replay(ReplayFigures):
    """What the tiers of a document did for a trace; rates in percent of all prompt chunks.

    Attributes:
        unlimited_hit_rate_percent: of a cache without a limit.
        tokens_per_id: tokens that one number of the trace stands for.
        chunks_per_id: chunks of the server that they are.
        span_s: from the first request to the last; null where the trace does not say.
        left_out_prompts: those that a server has not recorded.
        policy: of the pinned tier.
        step_chunks: chunks of a prompt that are stored in one step; null for all at once.
        first_tokens: null where no speeds were given.
        sweep: null where none was asked for.
        alternatives: the first one is the document as it is; empty where none were asked for.
    """

    tiers: tuple[ReplayTier, ...]
    unlimited_hit_rate_percent: float
    chunk_bytes: int
    tokens_per_id: int
    chunks_per_id: int
    span_s: float | None
    left_out_prompts: int
    sweep: ReplaySweep | None
    alternatives: tuple[ReplayAlternative, ...]
    policy: str
    step_chunks: int | None


@dataclass(frozen=True, slots=True)
class Init:
    """The document that was written, and why each of its values is what it is.

    Attributes:
        warnings: what is probably a mistake.
    """

    file: str
    document: dict[str, Any]
    reasons: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """Layers of one kind, which keep the same of a token.

    Attributes:
        kind: full, sliding, or latent.
        heads: of keys and values.
        head_elements: numbers of one head and token in one layer.
        window_tokens: how many tokens back such a layer looks; null for all.
    """

    kind: str
    layers_count: int
    heads: int
    head_elements: int
    window_tokens: int | None


@dataclass(frozen=True, slots=True)
class Holding:
    """What a tier holds when it is full."""

    capacity_bytes: int
    chunks: int
    tokens: int
    prompts: float


@dataclass(frozen=True, slots=True)
class ExplainedTier:
    """One tier below the device.

    Attributes:
        wanted: by its capacity; null where only the machine it is for can tell.
        here: of that, what this machine's drives have room for; null where there are none to look at.
        bound_by: what keeps `here` from being more.
        load_s: how long the prefix takes from there; null where nobody can say.
        load_bytes_per_s: how fast it loads.
        load_origin: where that figure comes from.
    """

    tier: str
    wanted: Holding | None
    here: Holding | None
    bound_by: str | None
    load_s: float | None
    load_bytes_per_s: float | None
    load_origin: str | None


@dataclass(frozen=True, slots=True)
class Explain:
    """What a document holds for a model.

    Attributes:
        is_known: kvtier knows how such models keep their cache; else it was taken from their usual fields.
        token_bytes: of one token in the tiers below the device.
        chunk_tokens: how many tokens of all layers a chunk stands for.
        gpu_tokens: what the GPUs hold themselves, at most; null where it cannot be told.
        assumed: what was taken for granted.
        missing: what this machine lacks for the document.
        warnings: what will disappoint.
    """

    model_type: str
    is_known: bool
    kv_cache_dtype: str
    layers: tuple[ModelLayers, ...]
    token_bytes: float
    block_bytes: int
    block_tokens: int
    groups_count: int
    blocks_per_chunk: int
    chunk_bytes: int
    chunk_tokens: float
    gpu_tokens: int | None
    prompt_tokens: int
    prefix_tokens: int
    tiers: tuple[ExplainedTier, ...]
    assumed: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
