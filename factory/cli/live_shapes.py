"""The shape of what `kvtier top` prints with `--json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierNow:
    """One tier of one engine.

    Attributes:
        hits: since the start.
        hit_percent: of all lookups since the start, those that this tier answered; null before the first one.
        hit_percent_now, load_bytes_per_s, store_bytes_per_s, evicted_per_s: between two looks; null where
            there was one only.
        queue_chunks: what it is owed and does not have yet.
        cap_bytes: what it can take, and `bound_by` what keeps it from taking more.
        breaker: "closed", "trial" or "open"; "" where it has none.
    """

    tier: str
    hits: int
    hit_percent: float | None
    hit_percent_now: float | None
    load_bytes_per_s: float | None
    store_bytes_per_s: float | None
    evicted_per_s: float | None
    queue_chunks: int
    used_bytes: int
    cap_bytes: int
    bound_by: str
    breaker: str
    late_loads: int
    dropped_chunks: int
    corrupt_chunks: int


@dataclass(frozen=True, slots=True)
class EngineNow:
    """One engine.

    Attributes:
        kind: "vllm" or "library".
        stale: whether its numbers are some seconds old: it is stopped, or something hangs.
        saved_tokens: of prompts, not computed again since the start; null where nobody said what a chunk is.
        saved_s: how long computing these takes, at the measured rate; null where it is not known.
    """

    pid: int
    kind: str
    model: str
    namespace: str
    up_s: float
    stale: bool
    saved_tokens: int | None
    saved_s: float | None
    tiers: tuple[TierNow, ...]


@dataclass(frozen=True, slots=True)
class Top:
    """What the engines on a store do, the oldest first; rates are since a look about a second before."""

    engines: tuple[EngineNow, ...]
