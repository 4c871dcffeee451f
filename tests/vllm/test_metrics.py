"""What is reported to vLLM's metrics channel."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from kvtier.engine.chain import ChainStats
from kvtier.factory.vllm import metrics
from kvtier.tiers.base import TierStats


def chain_stats(tier_counters: dict[str, int], counters: dict[tuple[str, str], int]) -> ChainStats:
    gauges = {"breaker_state": 2, "unheard_of": 1}
    return ChainStats({"nvme": TierStats(3, 10, 20, tier_counters, gauges)}, 1, 2, counters)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what vLLM imports


class Reports:
    """Reports of numbers in the test's hand, whenever they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics, "INTERVAL_S", 0.0)
        self.now = chain_stats({}, {})
        self._reporter = metrics.Reporter(lambda: self.now)

    def counters(self) -> dict[tuple[str, tuple[str, ...]], float]:
        report = self._reporter.report()
        assert report is not None
        return {
            (name, labels): value
            for name, values in report.data["data"].items()
            if name not in GAUGES
            for labels, value in values.items()
        }


GAUGES = {name for name, kind in metrics.definitions().items() if "Gauge" in type(kind).__name__}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    return Reports(monkeypatch)


def test_only_what_changed_is_reported(reports: Reports) -> None:
    reports.now = chain_stats({"corrupt_chunks": 2}, {("hits", "nvme"): 5})
    assert reports.counters() == {
        ("kvtier:corrupt_chunks", ("nvme",)): 2,
        ("kvtier:lookup_hits", ("nvme",)): 5,
    }
    assert reports.counters() == {}
    reports.now = chain_stats({"corrupt_chunks": 3}, {("hits", "nvme"): 5})
    assert reports.counters() == {("kvtier:corrupt_chunks", ("nvme",)): 1}


def test_a_tier_that_counts_what_the_chain_counts_never_makes_a_counter_fall(reports: Reports) -> None:
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {})
    assert reports.counters() == {}
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {("hits", "nvme"): 4})
    assert reports.counters() == {("kvtier:lookup_hits", ("nvme",)): 4}


def test_every_metric_that_is_reported_is_defined(reports: Reports) -> None:
    everything = {(name, "nvme"): 1 for name in metrics.COUNTERS}
    reports.now = chain_stats({}, everything)
    assert {name for name, _ in reports.counters()} <= metrics.definitions().keys()
