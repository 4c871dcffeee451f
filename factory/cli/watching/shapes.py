"""The shapes of what the commands that watch print with `--json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One thing that was looked at.

    Attributes:
        place: the directory that it is about; null where it is about the machine.
        state: ok, warning, fault, or unknown.
        fix: what to do; empty where there is nothing to do.
    """

    place: str | None
    check: str
    state: str
    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class Doctor:
    """How this machine and its drives stand."""

    checks: tuple[MachineCheck, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPhase:
    """What was stored, or loaded; times of a request of up to 64 chunks, 4 of them at once."""

    size_bytes: int
    bytes_per_s: float
    p50_s: float
    p99_s: float
    cpu_s_per_gib: float


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A drive measured with chunks of one size.

    Attributes:
        loaded: null without direct I/O: then it says nothing of the drive.
        flush_s: what it took to make durable all that was stored.
        failed: chunks that could not be stored or loaded, by reason.
    """

    chunk_bytes: int
    stored: MeasuredPhase
    loaded: MeasuredPhase | None
    flush_s: float
    is_direct: bool
    compared_chunks: int
    wrong_chunks: int
    failed: dict[str, int]


@dataclass(frozen=True, slots=True)
class MeasuredDrive:
    """A drive; what is recommended is null where loads could not be measured."""

    path: str
    runs: tuple[MeasuredRun, ...]
    recommended_chunk_bytes: int | None
    recommended_load_deadline_s: int | None


@dataclass(frozen=True, slots=True)
class Bench:
    """How fast drives are, used as kvtier uses them."""

    drives: tuple[MeasuredDrive, ...]


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
