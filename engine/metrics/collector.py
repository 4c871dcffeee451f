"""An engine's metrics for Prometheus, where `prometheus_client` is installed.

A scrape reads the engine's numbers once, on the thread that scrapes, and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from ...tiers.errors import ClosedError
from ...tiers.histogram import Histogram
from ..chain import ChainStats
from .names import METRICS, Kind
from .samples import samples

_FAMILIES: dict[Kind, Any] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


class HasStats(Protocol):
    """What has a chain's numbers, such as an `OffloadEngine`."""

    def stats(self) -> ChainStats: ...


class EngineCollector(Collector):  # type: ignore[misc]  # its types are not followed
    """The metrics of one engine. Any thread may collect them, also while the engine starts or closes.

    Before the engine has KV caches, and once it is closed, there are none. It keeps the engine alive until it
    is unregistered.
    """

    def __init__(self, engine: HasStats) -> None:
        self._engine = engine

    def register(self, registry: CollectorRegistry = REGISTRY) -> EngineCollector:
        """Have the registry export the engine's metrics, until it unregisters this collector.

        Of two engines in one registry each metric would be there twice: give each a registry of its own.

        Raises:
            ValueError: the registry exports metrics of these names already.
        """
        registry.register(self)
        return self

    def describe(self) -> Iterator[Any]:
        """Every metric without samples, by which a registry finds names that are taken."""
        for metric in METRICS:
            yield _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)

    def collect(self) -> Iterator[Any]:
        """Every metric that has samples now."""
        try:
            stats = self._engine.stats()
        except (ClosedError, ValueError):  # closed, or not started
            return
        families: dict[str, Any] = {}
        for metric, labels, value in samples(stats):
            if metric.name not in families:
                families[metric.name] = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            family = families[metric.name]
            if isinstance(value, Histogram):
                family.add_metric(labels, _buckets(value), value.sum_s)
            else:
                family.add_metric(labels, value)
        yield from families.values()


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """How many durations were at most so long, as Prometheus wants them."""
    bounds = [*map(str, histogram.bounds_s), "+Inf"]
    so_far = 0
    buckets = []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    return buckets
