"""kvtier's metrics, in vLLM's own metrics channel.

The manager in the scheduler process reports what changed since its last report, and the front end adds it up
under the definitions below. Prometheus appends ``_total`` to the names of counters. The workers measure the
copies between the device and pinned memory, which vLLM reports itself: ``vllm:kv_offload_load_time`` and
``vllm:kv_offload_store_time``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ...engine.chain import ChainStats
from ...tiers.base import RemoveReason

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

INTERVAL_S = 0.25  # nobody scrapes more often
SETTLE_S = 5.0  # for so long an idle server goes on stepping, at a fraction of a core, for what still moves

# The chain's counter -> (metric, help), each by tier.
COUNTERS = {
    "hits": ("kvtier:lookup_hits", "Chunks that requests loaded, by the tier that had them."),
    "misses": ("kvtier:lookup_misses", "Lookups of chunks that no tier had."),
    "slotless": (
        "kvtier:lookup_slotless",
        "Lookups of chunks that a lower tier had while no slot was free. They count as misses.",
    ),
    "loaded_bytes": (
        "kvtier:load_bytes",
        "Bytes loaded from the tier: from pinned to the device, from a lower tier to pinned.",
    ),
    "stored_bytes": ("kvtier:store_bytes", "Bytes stored in the tier."),
    "stored_chunks": ("kvtier:store_chunks", "Chunks stored in the tier."),
    "loaded_us": ("kvtier:load_time_us", "Total duration of loads from the tier, in microseconds."),
    "stored_us": ("kvtier:store_time_us", "Total duration of stores to the tier, in microseconds."),
    "dropped_chunks": (
        "kvtier:dropped_chunks",
        "Chunks never stored in the tier: it had no room or could not keep up.",
    ),
    "declined_chunks": (
        "kvtier:declined_chunks",
        "Chunks that the tier has and that were computed, as that was expected to be sooner.",
    ),
    "late_loads": ("kvtier:late_loads", "Chunks not loaded by the deadline; the request recomputed them."),
    "corrupt_chunks": ("kvtier:corrupt_chunks", "Chunks that failed their checksum. They count as misses."),
    "carried_bytes": (
        "kvtier:carried_bytes",
        "Bytes rewritten to keep chunks that are still read when their segment is reclaimed.",
    ),
    "not_admitted_chunks": ("kvtier:not_admitted_chunks", "Chunks not stored: offered for the first time."),
    "over_budget_chunks": ("kvtier:over_budget_chunks", "Chunks not stored: the write budget was spent."),
    "breaker_openings": (
        "kvtier:breaker_openings",
        "How often the tier's breaker opened, after errors or slow answers.",
    ),
    "breaker_missed_chunks": (
        "kvtier:breaker_missed",
        "Lookups answered as misses because the breaker was open.",
    ),
    "breaker_missing_chunks": (
        "kvtier:breaker_refused",
        "Chunks found earlier but not loaded because the breaker was open.",
    ),
    "breaker_dropped_chunks": ("kvtier:breaker_dropped", "Chunks not stored because the breaker was open."),
    "io_errors": ("kvtier:io_errors", "Reads and writes that failed with an I/O error."),
    "dropped_events": ("kvtier:dropped_events", "KV-cache events that the server did not take in time."),
}
# Reported as zero from the start, for every tier, like what the chain counts: an alert needs the series.
FROM_THE_START = ("evicted_chunks",)
REMOVED = (
    "kvtier:removed_chunks",
    "Chunks that left the tier, by reason: evicted to make room, corrupt, requested by an "
    "operator, or invalidated because the weights changed.",
)
REASONS = {f"{reason}_chunks": str(reason) for reason in RemoveReason}  # counter of a tier -> reason
USED = ("kvtier:used_bytes", "Bytes in use in the tier.")
CAPACITY = ("kvtier:capacity_bytes", "Capacity of the tier in bytes.")
GAUGES = {
    "load_bytes_per_s": ("kvtier:load_bytes_per_second", "How fast loads from the tier are, once known."),
    "prefill_tokens_per_s": (
        "kvtier:prefill_tokens_per_second",
        "How fast prompts are computed, once known.",
    ),
    "useful_bytes": (
        "kvtier:useful_bytes",
        "Bytes in the tier that were read back, or used in another tier, at least once.",
    ),
    "durability_period_s": (
        "kvtier:durability_period_seconds",
        "Seconds after which a stored chunk is durable without a flush; they follow from what a flush costs.",
    ),
    "direct_io": ("kvtier:direct_io", "1 where chunks bypass the page cache."),
    "drives_out": ("kvtier:drives_out", "Drives of a tier of several that are not used now."),
    "breaker_state": (
        "kvtier:breaker_state",
        "State of the tier's breaker. 0: closed. 1: half-open. 2: open.",
    ),
    "written_bytes": ("kvtier:written_bytes", "Bytes written to the drive since its directory was made."),
    "written_bytes_a_day": ("kvtier:written_bytes_a_day", "The same a day, over about a week."),
    "drive_writes_a_day": ("kvtier:drive_writes_a_day", "How often the capacity is written a day."),
    "years_left": ("kvtier:years_left", "Years until the drive's endurance is written, at this rate."),
}
# Each drive's own, of a tier of several. Under names of their own: a sum over the tiers would count twice.
DRIVE_COUNTERS = {
    "io_errors": ("kvtier:drive_io_errors", "Reads and writes that failed with an I/O error, by drive."),
    "breaker_openings": ("kvtier:drive_breaker_openings", "How often the drive's breaker opened."),
}
DRIVE_USED = ("kvtier:drive_used_bytes", "Bytes in use, by drive of a tier of several.")
DRIVE_BREAKER = (
    "kvtier:drive_breaker_state",
    "State of the drive's breaker, by drive of a tier of several. 0: closed. 1: half-open. 2: open.",
)
PENDING = (
    "kvtier:pending_stores",
    "Chunks in slots that are not yet stored in the tier, which is below them.",
)
PINNED = ("kvtier:pinned_slots", "Slots held by transfers and waiting requests.")


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """What vLLM's front end registers with Prometheus."""
    from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata

    metrics: dict[str, OffloadingMetricMetadata] = {}
    for name, text in COUNTERS.values():
        metrics[name] = OffloadingCounterMetadata(documentation=text, labelnames=("tier",))
    removed, text = REMOVED
    metrics[removed] = OffloadingCounterMetadata(documentation=text, labelnames=("tier", "reason"))
    for name, text in (USED, CAPACITY, PENDING, *GAUGES.values()):
        metrics[name] = OffloadingGaugeMetadata(documentation=text, labelnames=("tier",))
    for name, text in DRIVE_COUNTERS.values():
        metrics[name] = OffloadingCounterMetadata(documentation=text, labelnames=("tier", "drive"))
    for name, text in (DRIVE_USED, DRIVE_BREAKER):
        metrics[name] = OffloadingGaugeMetadata(documentation=text, labelnames=("tier", "drive"))
    name, text = PINNED
    metrics[name] = OffloadingGaugeMetadata(documentation=text)
    return metrics


class Reporter:
    """Turns the chain's totals into what changed since the last report.

    To read the numbers and compare them takes longer than many a step. So that is done ahead, on another
    thread, and a step takes what is ready.

    vLLM reports only while it steps, and chunks still move after its last step. So it is made to go on for a
    while, until nothing moves and all is reported.

    Threads: `run` and `look` are one thread's, the loop's. The rest is the scheduler's.
    """

    def __init__(self, stats: Callable[[], ChainStats], clock: Callable[[], float] = time.monotonic) -> None:
        self._stats = stats
        self._clock = clock
        # Of the thread that looks:
        self._reported: dict[tuple[str, ...], int] = {}  # by counter, tier, and drive
        self._told: ChainStats | None = None  # by the last report
        # Of the scheduler's thread:
        self._settles_until_s = 0.0
        # Of both, in steps that are atomic:
        self._ready: deque[OffloadingConnectorStats] = deque()  # one at most: the next one waits for it
        self._works = 0  # how often the server was at work
        self._settled_works = -1  # how often it was when nothing moved and all was reported
        self._has_stepped = False  # since the last look; some releases never ask for a report

    def busy(self) -> None:
        """Note that the server is at work: what this sets in motion will be reported."""
        self._works += 1
        self._settles_until_s = self._clock() + SETTLE_S

    def is_owed(self) -> bool:
        """Say whether an idle server should take another step, for what still moves or is not reported."""
        if self._clock() >= self._settles_until_s:
            return False
        return bool(self._ready) or self._settled_works != self._works

    def report(self) -> OffloadingConnectorStats | None:
        """Return what has changed, or None when nothing has, or nobody has looked yet."""
        self._has_stepped = True
        return self._ready.popleft() if self._ready else None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Make the next report ready, where the server steps, took the last one, and anything changed."""
        if self._ready or not self._has_stepped:
            return
        self._has_stepped, works = (
            False,
            self._works,
        )  # before the numbers: what comes meanwhile is not settled
        stats = self._stats()
        if stats != self._told:
            self._told = stats
            self._ready.append(self._changes(stats))
        elif not any(stats.pending_chunks.values()):
            self._settled_works = works

    def _changes(self, stats: ChainStats) -> OffloadingConnectorStats:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

        report = OffloadingConnectorStats()
        for (counter, tier), total in _totals(stats).items():
            self._add(report, total, counter, tier)
        for (counter, tier, drive), total in _totals_of_drives(stats).items():
            self._add(report, total, counter, tier, drive)
        for tier, numbers in stats.tiers.items():
            report.set_gauge(USED[0], numbers.used_bytes, (tier,))
            report.set_gauge(CAPACITY[0], numbers.capacity_bytes, (tier,))
            for gauge, value in numbers.gauges.items():
                if gauge in GAUGES:
                    report.set_gauge(GAUGES[gauge][0], value, (tier,))
            for drive, own in numbers.parts.items():
                report.set_gauge(DRIVE_USED[0], own.used_bytes, (tier, drive))
                if "breaker_state" in own.gauges:  # a part of a tier of another package may tell nothing
                    report.set_gauge(DRIVE_BREAKER[0], own.gauges["breaker_state"], (tier, drive))
        for tier, chunks in stats.pending_chunks.items():
            report.set_gauge(PENDING[0], chunks, (tier,))
        report.set_gauge(PINNED[0], stats.pinned_slots)
        return report

    def _add(self, report: OffloadingConnectorStats, total: int, *of: str) -> None:
        """Report what was added to a counter since the last time; at first also that there is nothing."""
        change = total - self._reported.get(of, 0)
        if change > 0 or of not in self._reported:
            for name, labels in _series(*of):
                report.increase_counter(name, change, labels)
            self._reported[of] = total


def _totals(stats: ChainStats) -> dict[tuple[str, str], int]:
    zeros = {(counter, tier): 0 for counter in FROM_THE_START for tier in stats.tiers}
    return zeros | {
        (counter, tier): total
        for tier, numbers in stats.tiers.items()
        for counter, total in numbers.counters.items()
    }


def _totals_of_drives(stats: ChainStats) -> dict[tuple[str, str, str], int]:
    return {
        (counter, tier, drive): own.counters[counter]
        for tier, numbers in stats.tiers.items()
        for drive, own in numbers.parts.items()
        for counter in DRIVE_COUNTERS
        if counter in own.counters
    }


def _series(counter: str, tier: str, *drive: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The metrics that a counter is part of, each with its labels."""
    if drive:
        yield DRIVE_COUNTERS[counter][0], (tier, *drive)
        return
    if counter in COUNTERS:
        yield COUNTERS[counter][0], (tier,)
    if counter in REASONS:
        yield REMOVED[0], (tier, REASONS[counter])
