"""kvtier's numbers in vLLM's own metrics channel.

The manager, in the scheduler process, hands over what changed since the last time; the front end adds it
up under the definitions below. Counters get Prometheus' suffix ``_total`` there. What copies between the
device and pinned memory take, the workers measure, and vLLM reports it itself: ``vllm:kv_offload_load_time``
and ``vllm:kv_offload_store_time``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ...engine.chain import ChainStats
from ...tiers.base import RemoveReason

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

INTERVAL_S = 0.25  # a scheduler steps a thousand times a second; nobody scrapes that often

# Counter of the chain -> (name, what it counts), each by tier.
COUNTERS = {
    "hits": ("kvtier:lookup_hits", "Chunks that requests loaded, by the tier that supplied them."),
    "misses": ("kvtier:lookup_misses", "Lookups of chunks that no tier could supply."),
    "slotless": (
        "kvtier:lookup_slotless",
        "Lookups of chunks that a tier below has, while every slot was in use: misses for that request.",
    ),
    "loaded_bytes": (
        "kvtier:load_bytes",
        "Bytes read from the tier: onto the device from pinned, into pinned from below.",
    ),
    "stored_bytes": ("kvtier:store_bytes", "Bytes written to the tier."),
    "stored_chunks": ("kvtier:store_chunks", "Chunks written to the tier."),
    "loaded_us": ("kvtier:load_time_us", "Microseconds that loads from the tier took, added up."),
    "stored_us": ("kvtier:store_time_us", "Microseconds that stores to the tier took, added up."),
    "dropped_chunks": ("kvtier:dropped_chunks", "Chunks not stored because the tier had no room or no time."),
    "late_loads": ("kvtier:late_loads", "Chunks that a request gave up waiting for, at the load deadline."),
    "corrupt_chunks": ("kvtier:corrupt_chunks", "Chunks that failed their checksum, and were misses."),
    "carried_bytes": ("kvtier:carried_bytes", "Bytes written again to keep what is read, as room is made."),
    "breaker_openings": ("kvtier:breaker_openings", "Times that the tier was given up for a while."),
    "breaker_missed_chunks": ("kvtier:breaker_missed", "Lookups answered as misses meanwhile."),
    "breaker_missing_chunks": ("kvtier:breaker_refused", "Chunks found before and not loaded meanwhile."),
    "breaker_dropped_chunks": ("kvtier:breaker_dropped", "Chunks not stored meanwhile."),
    "io_errors": ("kvtier:io_errors", "Reads and writes that the device refused."),
}
COUNTED_BY_CHAIN = frozenset(
    (
        "hits",
        "misses",
        "slotless",
        "loaded_bytes",
        "loaded_us",
        "stored_us",
        "stored_bytes",
        "stored_chunks",
        "dropped_chunks",
        "late_loads",
    )
)
# Reported at zero before they happen, for every tier: what is absent raises no alarm.
FROM_THE_START = ("dropped_chunks", "late_loads", "evicted_chunks", "invalidated_chunks")
REMOVED = (
    "kvtier:removed_chunks",
    "Chunks that left the tier, by reason: evicted for others, corrupt, requested, "
    "or invalidated with the weights.",
)
REASONS = {f"{reason}_chunks": str(reason) for reason in RemoveReason}  # counter of a tier -> reason
USED = ("kvtier:used_bytes", "Bytes taken in the tier.")
CAPACITY = ("kvtier:capacity_bytes", "The tier's cap.")
GAUGES = {
    "useful_bytes": ("kvtier:useful_bytes", "Bytes in the tier that were ever read back."),
    "breaker_state": ("kvtier:breaker_state", "0: in use. 1: being tried again. 2: given up for a while."),
}
PENDING = ("kvtier:pending_stores", "Chunks in slots that wait for the tiers below.")
PINNED = ("kvtier:pinned_slots", "Slots in use by transfers and waiting requests.")


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """What vLLM's front end registers with Prometheus."""
    from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata

    metrics: dict[str, OffloadingMetricMetadata] = {}
    for name, text in COUNTERS.values():
        metrics[name] = OffloadingCounterMetadata(documentation=text, labelnames=("tier",))
    removed, text = REMOVED
    metrics[removed] = OffloadingCounterMetadata(documentation=text, labelnames=("tier", "reason"))
    for name, text in (USED, CAPACITY, *GAUGES.values()):
        metrics[name] = OffloadingGaugeMetadata(documentation=text, labelnames=("tier",))
    for name, text in (PENDING, PINNED):
        metrics[name] = OffloadingGaugeMetadata(documentation=text)
    return metrics


class Reporter:
    """Turns the chain's totals into what changed since the last report."""

    def __init__(self, stats: Callable[[], ChainStats]) -> None:
        self._stats = stats
        self._reported: dict[tuple[str, str], int] = {}
        self._due_at_s = 0.0

    def report(self) -> OffloadingConnectorStats | None:
        """Return the changes, or None when a report is not yet due."""
        if time.monotonic() < self._due_at_s:
            return None
        self._due_at_s = time.monotonic() + INTERVAL_S
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

        stats, report = self._stats(), OffloadingConnectorStats()
        for (counter, tier), total in self._totals(stats).items():
            change = total - self._reported.get((counter, tier), 0)
            if change > 0 or (counter, tier) not in self._reported:
                for name, labels in _series(counter, tier):
                    report.increase_counter(name, change, labels)
                self._reported[counter, tier] = total
        for tier, numbers in stats.tiers.items():
            report.set_gauge(USED[0], numbers.used_bytes, (tier,))
            report.set_gauge(CAPACITY[0], numbers.capacity_bytes, (tier,))
            for gauge, value in numbers.gauges.items():
                if gauge in GAUGES:
                    report.set_gauge(GAUGES[gauge][0], value, (tier,))
        report.set_gauge(PENDING[0], stats.dirty_chunks)
        report.set_gauge(PINNED[0], stats.pinned_slots)
        return report

    def _totals(self, stats: ChainStats) -> dict[tuple[str, str], int]:
        # Where a tier counts what the chain counts too, the chain's count is meant, from the first report on:
        # one that jumped from one to the other could fall, and vLLM's engine ends at a counter that falls.
        of_tiers = {
            (counter, tier): total
            for tier, numbers in stats.tiers.items()
            for counter, total in numbers.counters.items()
            if counter not in COUNTED_BY_CHAIN
        }
        zeros = {(counter, tier): 0 for counter in FROM_THE_START for tier in stats.tiers}
        return zeros | of_tiers | dict(stats.counters)


def _series(counter: str, tier: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The metrics that a counter is part of, each with its labels."""
    if counter in COUNTERS:
        yield COUNTERS[counter][0], (tier,)
    if counter in REASONS:
        yield REMOVED[0], (tier, REASONS[counter])
