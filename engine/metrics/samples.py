"""The chain's numbers as samples of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...tiers.base import TierStats
from ...tiers.histogram import Histogram
from ..chain import ChainStats
from .names import PENDING, PINNED_SLOTS, REASONS, REMOVED, Kind, Metric, by_source

FROM_THE_START = ("evicted_chunks",)
"""Zero for every tier before it counts them, like what the chain counts: an alert needs the series."""

_TIER, _DRIVE = ("tier",), ("tier", "drive")
_COUNTERS, _GAUGES = by_source(Kind.COUNTER, _TIER), by_source(Kind.GAUGE, _TIER)
_HISTOGRAMS = by_source(Kind.HISTOGRAM, _TIER)
_COUNTERS_OF_DRIVES, _GAUGES_OF_DRIVES = by_source(Kind.COUNTER, _DRIVE), by_source(Kind.GAUGE, _DRIVE)
_COUNTERS_OF_ALL = by_source(Kind.COUNTER, ())


class Sample(NamedTuple):
    """One series of a metric, and its value now; a histogram's is a `Histogram`."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Histogram


def samples(stats: ChainStats) -> Iterator[Sample]:
    """Every series that the numbers have, each once; what has no metric is left out."""
    for tier, numbers in stats.tiers.items():
        yield from _of_tier(tier, numbers)
        for drive, own in numbers.parts.items():
            yield from _scaled(_COUNTERS_OF_DRIVES, own.counters, (tier, drive))
            yield from _scaled(_GAUGES_OF_DRIVES, _gauges(own), (tier, drive))
    for source, metric in _COUNTERS_OF_ALL.items():
        counts = [tier.counters[source] for tier in stats.tiers.values() if source in tier.counters]
        if counts:
            yield Sample(metric, (), sum(counts))
    for tier, chunks in stats.pending_chunks.items():
        yield Sample(PENDING, (tier,), chunks)
    yield Sample(PINNED_SLOTS, (), stats.pinned_slots)


def _of_tier(tier: str, numbers: TierStats) -> Iterator[Sample]:
    counters = {**dict.fromkeys(FROM_THE_START, 0), **numbers.counters}
    yield from _scaled(_COUNTERS, counters, (tier,))
    for counter, reason in REASONS.items():
        if counter in counters:
            yield Sample(REMOVED, (tier, reason), counters[counter])
    yield from _scaled(_GAUGES, _gauges(numbers), (tier,))
    for source, histogram in numbers.histograms.items():
        if source in _HISTOGRAMS:
            yield Sample(_HISTOGRAMS[source], (tier,), histogram)


def _scaled(
    metrics: Mapping[str, Metric], values: Mapping[str, float], labels: tuple[str, ...]
) -> Iterator[Sample]:
    for source, value in values.items():
        if (metric := metrics.get(source)) is not None:
            yield Sample(metric, labels, value if metric.scale == 1 else value * metric.scale)


def _gauges(numbers: TierStats) -> dict[str, float]:
    return {
        **numbers.gauges,
        "used_bytes": numbers.used_bytes,
        "capacity_bytes": numbers.capacity_bytes,
    }
