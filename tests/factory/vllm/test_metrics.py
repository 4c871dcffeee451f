"""What is reported to vLLM's metrics channel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from nvme_rig import filled, keys_of, opened

from kvtier.engine.chain import COUNTED, ChainStats, with_counts
from kvtier.factory.vllm import metrics
from kvtier.tiers.admission import SecondTouch
from kvtier.tiers.base import TierStats
from kvtier.tiers.breaker import Breaker
from kvtier.tiers.nvme.wear.terms import Terms

WITHOUT_METRIC = {"loaded_chunks", "carried_chunks"}  # bytes tell the same, chunks being of one size


def chain_stats(tier_counters: dict[str, int], counters: dict[tuple[str, str], int]) -> ChainStats:
    gauges = {"breaker_state": 2, "unheard_of": 1}
    tiers = {"pinned": TierStats(1, 5, 10), "nvme": TierStats(3, 10, 20, tier_counters, gauges)}
    return ChainStats(with_counts(tiers, counters), {"nvme": 1}, 2)


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]


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

    def changes(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """What a report adds to the counters; a report that adds nothing only brings them into being."""
        return {series: value for series, value in self.counters().items() if value}


GAUGES = {name for name, kind in metrics.definitions().items() if "Gauge" in type(kind).__name__}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    return Reports(monkeypatch)


def test_only_what_changed_is_reported(reports: Reports) -> None:
    reports.now = chain_stats({"carried_bytes": 2}, {("hits", "nvme"): 5})
    assert reports.changes() == {
        ("kvtier:carried_bytes", ("nvme",)): 2,
        ("kvtier:lookup_hits", ("nvme",)): 5,
    }
    assert reports.counters() == {}
    reports.now = chain_stats({"carried_bytes": 3}, {("hits", "nvme"): 5})
    assert reports.counters() == {("kvtier:carried_bytes", ("nvme",)): 1}


def test_what_may_never_happen_is_reported_as_zero_once(reports: Reports) -> None:
    reports.now = chain_stats({"corrupt_chunks": 0}, {})
    first = reports.counters()
    assert set(first.values()) == {0}
    of_chain = {metrics.COUNTERS[counter][0] for counter in COUNTED if counter in metrics.COUNTERS}
    assert {name for name, _ in first} == of_chain | {"kvtier:corrupt_chunks", "kvtier:removed_chunks"}
    assert reports.counters() == {}


def test_removals_are_told_by_reason(reports: Reports) -> None:
    reports.now = chain_stats(
        {"evicted_chunks": 1, "corrupt_chunks": 2}, {("invalidated_chunks", "pinned"): 3}
    )
    assert reports.changes() == {
        ("kvtier:removed_chunks", ("nvme", "evicted")): 1,
        ("kvtier:removed_chunks", ("nvme", "corrupt")): 2,
        ("kvtier:corrupt_chunks", ("nvme",)): 2,
        ("kvtier:removed_chunks", ("pinned", "invalidated")): 3,
    }
    assert set(metrics.REASONS.values()) == {"evicted", "corrupt", "requested", "invalidated"}


def test_a_tier_that_counts_what_the_chain_counts_never_makes_a_counter_fall(reports: Reports) -> None:
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {})
    assert reports.changes() == {}
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {("hits", "nvme"): 4})
    assert reports.changes() == {("kvtier:lookup_hits", ("nvme",)): 4}


def test_every_metric_that_is_reported_is_defined_with_its_labels(reports: Reports) -> None:
    everything = {(name, "nvme"): 1 for name in (*metrics.COUNTERS, *metrics.REASONS)}
    reports.now = chain_stats({}, everything)
    definitions = metrics.definitions()
    for name, labels in reports.counters():
        assert len(definitions[name].labelnames) == len(labels)


def drive_stats(io_errors: int, breaker_state: int) -> TierStats:
    return TierStats(
        3, 10, 20, {"io_errors": io_errors, "breaker_openings": 0}, {"breaker_state": breaker_state}
    )


def test_each_of_several_drives_is_told(reports: Reports) -> None:
    parts = {"/a": drive_stats(0, 0), "/b": drive_stats(7, 2)}
    reports.now = ChainStats({"nvme": TierStats(6, 20, 40, {}, {}, parts)}, {"nvme": 1}, 2)
    report = reports._reporter.report()
    assert report is not None
    data = report.data["data"]
    assert data["kvtier:drive_io_errors"] == {("nvme", "/a"): 0, ("nvme", "/b"): 7}
    assert data["kvtier:drive_breaker_state"] == {("nvme", "/a"): 0, ("nvme", "/b"): 2}
    assert data["kvtier:drive_used_bytes"] == {("nvme", "/a"): 10, ("nvme", "/b"): 10}
    parts["/a"] = drive_stats(1, 0)
    assert reports.changes() == {("kvtier:drive_io_errors", ("nvme", "/a")): 1}
    definitions = metrics.definitions()
    assert all(definitions[name].labelnames == ("tier", "drive") for name in data if "drive" in name)


async def test_every_counter_of_the_nvme_tier_and_its_breaker_has_a_metric(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "nvme", terms=Terms(endurance_bytes=10**12))
    breaker = Breaker(SecondTouch(tier, 100), slow_s=1.0)
    for _ in range(2):
        await breaker.store(keys_of(0, 1), filled(keys_of(0, 1)))
    stats = breaker.stats()
    await breaker.close()
    known = {*metrics.COUNTERS, *metrics.REASONS}
    assert stats.counters.keys() - known == WITHOUT_METRIC
    assert stats.gauges.keys() == metrics.GAUGES.keys()
