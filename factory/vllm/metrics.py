"""kvtier's metrics, in vLLM's own metrics channel.

The manager in the scheduler process reports what changed since its last report, and the front end adds it up
under the definitions below. Releases of vLLM that know no histograms there get the rest. The workers
measure the copies between the device and pinned memory, which vLLM reports itself:
``vllm:kv_offload_load_time`` and ``vllm:kv_offload_store_time``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from ...engine.chain import ChainStats
from ...engine.metrics.names import METRICS, Kind
from ...engine.metrics.samples import Sample, samples
from ...tiers.histogram import BOUNDS_S, Histogram

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

logger = logging.getLogger(__name__)

INTERVAL_S = 0.25  # nobody scrapes more often
LOOK_EVERY_S = 0.02  # an idle server asks several times a step whether it should take another
SETTLE_S = 5.0  # for so long an idle server goes on stepping, at a fraction of a core, for what still moves


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """What vLLM's front end registers with Prometheus."""
    from vllm.v1.kv_offload import base

    kinds = {Kind.COUNTER: base.OffloadingCounterMetadata, Kind.GAUGE: base.OffloadingGaugeMetadata}
    defined: dict[str, OffloadingMetricMetadata] = {
        metric.name: kinds[metric.kind](documentation=metric.help, labelnames=metric.labels)
        for metric in METRICS
        if metric.kind in kinds
    }
    if (of_histograms := getattr(base, "OffloadingHistogramMetadata", None)) is not None:
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                defined[metric.name] = of_histograms(
                    documentation=metric.help, labelnames=metric.labels, buckets=BOUNDS_S
                )
    return defined


class _Report(NamedTuple):
    changes: OffloadingConnectorStats
    settled_works: int  # how often the server had been at work, if nothing moved any more; else -1


class Reporter:
    """Turns the chain's totals into what changed since the last report.

    To read the numbers and compare them takes longer than many a step. So that is done ahead, on another
    thread, and a step takes what is ready.

    vLLM reports only while it steps, and chunks still move after its last step. So it is made to go on for a
    while, until nothing moves and all is reported.

    Threads: `run` and `look` are the loop's, the rest is the scheduler's. Two never look at once.
    """

    def __init__(self, stats: Callable[[], ChainStats], clock: Callable[[], float] = time.monotonic) -> None:
        self._stats = stats
        self._clock = clock
        # Of the thread that looks, which holds the lock:
        self._looking = Lock()
        self._reported: dict[tuple[str, tuple[str, ...]], float | Histogram] = {}  # by metric and labels
        self._told: ChainStats | None = None  # by the last report
        self._has_failed = False
        # Of the scheduler's thread:
        self._settles_until_s = 0.0
        self._looked_at_s = -math.inf
        # Of both, in steps that are atomic:
        self._ready: deque[_Report] = deque()  # one at most: the next one waits for it
        self._works = 0  # how often the server was at work
        self._settled_works = -1  # how often it was when nothing moved and all was reported
        self._has_stepped = False  # since the last look; some releases never ask for a report

    def busy(self) -> None:
        """Note that the server is at work: what this sets in motion will be reported."""
        self._works += 1
        self._settles_until_s = self._clock() + SETTLE_S

    def is_owed(self) -> bool:
        """Say whether an idle server should take another step, for what still moves or is not reported.

        It has the time to look by itself. A paused server with requests steps on as long as this says so, and
        gets nothing done in it.
        """
        now_s = self._clock()
        if now_s >= self._settles_until_s:
            return False
        if self._settled_works != self._works and now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            self._look()
        return bool(self._ready) or self._settled_works != self._works

    def report(self) -> OffloadingConnectorStats | None:
        """Return what has changed, or None when nothing has, or nobody has looked yet."""
        self._has_stepped = True
        if not self._ready:
            return None
        report = self._ready.popleft()
        self._settled_works = report.settled_works
        return report.changes

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Make the next report ready, where the server steps, took the last one, and anything changed."""
        if self._has_stepped:
            self._look()

    def _look(self) -> None:
        if not self._looking.acquire(blocking=False):
            return
        try:
            if self._ready:
                return
            self._has_stepped = False
            works = self._works  # before the numbers: what comes meanwhile is not settled
            stats = self._stats()
            settled_works = -1 if any(stats.pending_chunks.values()) else works
            if stats != self._told:
                self._told = stats
                self._ready.append(_Report(self._changes(stats), settled_works))
            else:
                self._settled_works = settled_works
        except Exception:  # numbers of a tier of another package that no metric can show: the server goes on
            if not self._has_failed:
                logger.exception("kvtier's metrics stand still: the numbers of its tiers cannot be reported")
            self._has_failed = True
            self._settled_works = self._works
        finally:
            self._looking.release()

    def _changes(self, stats: ChainStats) -> OffloadingConnectorStats:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

        report = OffloadingConnectorStats()
        for sample in samples(stats):
            if isinstance(sample.value, Histogram):
                self._observe(report, sample, sample.value)
            elif sample.metric.kind is Kind.GAUGE:
                report.set_gauge(sample.metric.name, sample.value, sample.labels)
            else:
                self._add(report, sample, sample.value)
        return report

    def _add(self, report: OffloadingConnectorStats, sample: Sample, total: float) -> None:
        """Report what was added to a counter since the last time; at first also that there is nothing."""
        series = (sample.metric.name, sample.labels)
        before = self._reported.get(series)
        change = total - (before if isinstance(before, int | float) else 0)
        if change > 0 or before is None:
            report.increase_counter(sample.metric.name, change, sample.labels)
            self._reported[series] = total

    def _observe(self, report: OffloadingConnectorStats, sample: Sample, now: Histogram) -> None:
        """Report the durations that were added since the last time, where this vLLM has histograms."""
        if not hasattr(report, "observe_histogram"):
            return
        series = (sample.metric.name, sample.labels)
        before = self._reported.get(series)
        for duration_s in now.since(before if isinstance(before, Histogram) else None):
            report.observe_histogram(sample.metric.name, duration_s, sample.labels)
        self._reported[series] = now
