"""The table of all metrics: what each is called, what it means, and which number of the chain it shows.

vLLM's own metrics channel and the collector for Prometheus export the same names. Prometheus appends
``_total`` to the names of counters. Base units, seconds and bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import partial

from ...tiers.base import RemoveReason


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        source: the counter, gauge or histogram of a tier, or field of the statistics, that it shows.
        labels: by ("tier",), by ("tier", "drive"), or by ("tier", "reason"); () where no tier has it alone.
        scale: what the source is multiplied by.
    """

    name: str
    kind: Kind
    source: str
    help: str
    labels: tuple[str, ...] = ("tier",)
    scale: float = 1

    @property
    def exported(self) -> str:
        """The name that Prometheus shows."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


_counter = partial(Metric, kind=Kind.COUNTER)
_gauge = partial(Metric, kind=Kind.GAUGE)
_histogram = partial(Metric, kind=Kind.HISTOGRAM)

_MICRO = 1e-6
_OF_DRIVES = ("tier", "drive")

REMOVED = _counter(
    name="kvtier:removed_chunks",
    source="",  # a counter for each reason: REASONS
    help="Chunks that left the tier, by reason: evicted to make room, corrupt, requested by an "
    "operator, or invalidated because the weights changed.",
    labels=("tier", "reason"),
)
REASONS = {f"{reason}_chunks": str(reason) for reason in RemoveReason}
"""The counter of a tier -> the reason."""

PENDING = _gauge(
    name="kvtier:pending_stores",
    source="pending_chunks",
    help="Chunks in slots that are not yet stored in the tier, which is below them.",
)
PINNED_SLOTS = _gauge(
    name="kvtier:pinned_slots",
    source="pinned_slots",
    help="Slots held by transfers and waiting requests.",
    labels=(),
)

METRICS: tuple[Metric, ...] = (
    _counter(
        name="kvtier:lookup_hits",
        source="hits",
        help="Chunks that requests loaded, by the tier that had them.",
    ),
    _counter(
        name="kvtier:lookup_misses", source="misses", help="Lookups of chunks that no tier had.", labels=()
    ),
    _counter(
        name="kvtier:lookup_slotless",
        source="slotless",
        help="Lookups of chunks that a lower tier had while no slot was free. They count as misses.",
        labels=(),
    ),
    _counter(
        name="kvtier:late_loads",
        source="late_loads",
        help="Chunks not loaded by the deadline; the request recomputed them.",
    ),
    _counter(
        name="kvtier:declined_chunks",
        source="declined_chunks",
        help="Chunks that the tier has and that were computed, as that was expected to be sooner.",
    ),
    _counter(
        name="kvtier:load_bytes",
        source="loaded_bytes",
        help="Bytes loaded from the tier: from pinned to the device, from a lower tier to pinned.",
    ),
    _counter(
        name="kvtier:load_seconds",
        source="loaded_us",
        help="Total duration of loads from the tier.",
        scale=_MICRO,
    ),
    _histogram(
        name="kvtier:load_duration_seconds",
        source="load_s",
        help="Duration of a load from the tier, of a batch of chunks.",
    ),
    _counter(name="kvtier:store_bytes", source="stored_bytes", help="Bytes stored in the tier."),
    _counter(name="kvtier:store_chunks", source="stored_chunks", help="Chunks stored in the tier."),
    _counter(
        name="kvtier:store_seconds",
        source="stored_us",
        help="Total duration of stores to the tier.",
        scale=_MICRO,
    ),
    _histogram(
        name="kvtier:store_duration_seconds",
        source="store_s",
        help="Duration of a store to the tier, of a batch of chunks.",
    ),
    _counter(
        name="kvtier:dropped_chunks",
        source="dropped_chunks",
        help="Chunks never stored in the tier: it had no room or could not keep up.",
    ),
    REMOVED,
    _counter(
        name="kvtier:corrupt_chunks",
        source="corrupt_chunks",
        help="Chunks that failed their checksum. They count as misses.",
    ),
    _counter(
        name="kvtier:io_errors",
        source="io_errors",
        help="Reads and writes that failed with an I/O error.",
    ),
    _counter(
        name="kvtier:carried_bytes",
        source="carried_bytes",
        help="Bytes rewritten to keep chunks that are still read when their segment is reclaimed.",
    ),
    _counter(
        name="kvtier:not_admitted_chunks",
        source="not_admitted_chunks",
        help="Chunks not stored: offered for the first time.",
    ),
    _counter(
        name="kvtier:over_budget_chunks",
        source="over_budget_chunks",
        help="Chunks not stored: the write budget was spent.",
    ),
    _counter(
        name="kvtier:breaker_openings",
        source="breaker_openings",
        help="How often the tier's breaker opened, after errors or slow answers.",
    ),
    _counter(
        name="kvtier:breaker_missed",
        source="breaker_missed_chunks",
        help="Lookups answered as misses because the breaker was open.",
    ),
    _counter(
        name="kvtier:breaker_refused",
        source="breaker_missing_chunks",
        help="Chunks found earlier but not loaded because the breaker was open.",
    ),
    _counter(
        name="kvtier:breaker_dropped",
        source="breaker_dropped_chunks",
        help="Chunks not stored because the breaker was open.",
    ),
    _counter(
        name="kvtier:dropped_events",
        source="dropped_events",
        help="KV-cache events that the server did not take in time.",
        labels=(),
    ),
    _gauge(name="kvtier:used_bytes", source="used_bytes", help="Bytes in use in the tier."),
    _gauge(name="kvtier:capacity_bytes", source="capacity_bytes", help="Capacity of the tier in bytes."),
    PENDING,
    PINNED_SLOTS,
    _gauge(
        name="kvtier:useful_bytes",
        source="useful_bytes",
        help="Bytes in the tier that were read back, or used in another tier, at least once.",
    ),
    _gauge(
        name="kvtier:load_bytes_per_second",
        source="load_bytes_per_s",
        help="How fast loads from the tier are, once known.",
    ),
    _gauge(
        name="kvtier:prefill_tokens_per_second",
        source="prefill_tokens_per_s",
        help="How fast prompts are computed, once known.",
    ),
    _gauge(
        name="kvtier:durability_period_seconds",
        source="durability_period_s",
        help="Seconds after which a stored chunk is durable without a flush; they follow from what a flush "
        "costs.",
    ),
    _gauge(name="kvtier:direct_io", source="direct_io", help="1 where chunks bypass the page cache."),
    _gauge(
        name="kvtier:breaker_state",
        source="breaker_state",
        help="State of the tier's breaker. 0: closed. 1: half-open. 2: open.",
    ),
    _gauge(
        name="kvtier:drives_out",
        source="drives_out",
        help="Drives of a tier of several that are not used now.",
    ),
    _gauge(
        name="kvtier:written_bytes",
        source="written_bytes",
        help="Bytes written to the drive since its directory was made.",
    ),
    _gauge(
        name="kvtier:drive_writes_a_day",
        source="drive_writes_a_day",
        help="How often the capacity is written a day.",
    ),
    _gauge(
        name="kvtier:years_left",
        source="years_left",
        help="Years until the drive's endurance is written, at this rate.",
    ),
    # Each drive's own, of a tier of several. By other names: a sum over the tiers would count them twice.
    _gauge(
        name="kvtier:drive_used_bytes",
        source="used_bytes",
        help="Bytes in use, by drive of a tier of several.",
        labels=_OF_DRIVES,
    ),
    _counter(
        name="kvtier:drive_io_errors",
        source="io_errors",
        help="Reads and writes that failed with an I/O error, by drive.",
        labels=_OF_DRIVES,
    ),
    _counter(
        name="kvtier:drive_breaker_openings",
        source="breaker_openings",
        help="How often the drive's breaker opened.",
        labels=_OF_DRIVES,
    ),
    _gauge(
        name="kvtier:drive_breaker_state",
        source="breaker_state",
        help="State of the drive's breaker, by drive of a tier of several. 0: closed. 1: half-open. 2: open.",
        labels=_OF_DRIVES,
    ),
)


def by_source(kind: Kind, labels: tuple[str, ...]) -> dict[str, Metric]:
    """The metrics of a kind that have these labels, by the number that they show."""
    return {metric.source: metric for metric in METRICS if (metric.kind, metric.labels) == (kind, labels)}
