"""What is reported to vLLM's metrics channel."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chain_rig import Clock

from kvtier.engine.chain import COUNTED, ChainStats, with_counts
from kvtier.engine.events import EventLog
from kvtier.engine.lifetime import chain_of
from kvtier.engine.loop import LoopThread
from kvtier.engine.metrics.names import METRICS, REASONS, Kind
from kvtier.engine.server import ServerChain
from kvtier.factory.composite import CompositeSpec
from kvtier.factory.vllm import metrics
from kvtier.tiers.base import TierStats
from kvtier.tiers.histogram import Durations

WITHOUT_METRIC = {"loaded_chunks", "carried_chunks"}  # bytes tell the same, chunks being of one size
COUNTER_OF = {metric.source: metric.name for metric in METRICS if metric.kind is Kind.COUNTER}
SHOWN_GAUGES = {metric.source for metric in METRICS if metric.kind is Kind.GAUGE}
OF_THE_STATISTICS = {"used_bytes", "capacity_bytes", "pending_chunks", "pinned_slots"}


def chain_stats(tier_counters: dict[str, int], counters: dict[tuple[str, str], int]) -> ChainStats:
    gauges = {"breaker_state": 2, "unheard_of": 1}
    tiers = {"pinned": TierStats(1, 5, 10), "nvme": TierStats(3, 10, 20, tier_counters, gauges)}
    return ChainStats(with_counts(tiers, counters), {"nvme": 1}, 2)


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]


class Reports:
    """Reports of numbers in the test's hand, to a server that steps before and after they are read."""

    def __init__(self) -> None:
        self.now = chain_stats({}, {})
        self._reporter = metrics.Reporter(lambda: self.now)

    def data(self) -> dict[str, dict[tuple[str, ...], float]]:
        assert self._reporter.report() is None
        self._reporter.look()
        report = self._reporter.report()
        return {} if report is None else report.data["data"]

    def counters(self) -> dict[tuple[str, tuple[str, ...]], float]:
        return {
            (name, labels): value
            for name, values in self.data().items()
            if name not in GAUGES
            for labels, value in values.items()
        }

    def changes(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """What a report adds to the counters; a report that adds nothing only brings them into being."""
        return {series: value for series, value in self.counters().items() if value}


GAUGES = {name for name, kind in metrics.definitions().items() if "Gauge" in type(kind).__name__}


@pytest.fixture
def reports() -> Reports:
    return Reports()


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
    of_chain = {COUNTER_OF[counter] for counter in COUNTED if counter in COUNTER_OF}
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
    assert set(REASONS.values()) == {"evicted", "corrupt", "requested", "invalidated"}


def test_a_tier_that_counts_what_the_chain_counts_never_makes_a_counter_fall(reports: Reports) -> None:
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {})
    assert reports.changes() == {}
    reports.now = chain_stats({"hits": 9, "stored_bytes": 100}, {("hits", "nvme"): 4})
    assert reports.changes() == {("kvtier:lookup_hits", ("nvme",)): 4}


def test_every_metric_that_is_reported_is_defined_with_its_labels(reports: Reports) -> None:
    everything = {(name, "nvme"): 1 for name in (*COUNTER_OF, *REASONS)}
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
    data = reports.data()
    assert data["kvtier:drive_io_errors"] == {("nvme", "/a"): 0, ("nvme", "/b"): 7}
    assert data["kvtier:drive_breaker_state"] == {("nvme", "/a"): 0, ("nvme", "/b"): 2}
    assert data["kvtier:drive_used_bytes"] == {("nvme", "/a"): 10, ("nvme", "/b"): 10}
    parts = {**parts, "/a": drive_stats(1, 0)}
    reports.now = ChainStats({"nvme": TierStats(6, 20, 40, {}, {}, parts)}, {"nvme": 1}, 2)
    assert reports.changes() == {("kvtier:drive_io_errors", ("nvme", "/a")): 1}
    definitions = metrics.definitions()
    assert all(definitions[name].labelnames == ("tier", "drive") for name in data if "drive" in name)


def test_a_part_that_counts_nothing_keeps_no_number_from_the_report(reports: Reports) -> None:
    tiers = {
        "pinned": TierStats(1, 5, 10),
        "remote": TierStats(3, 10, 20, parts={"node": TierStats(3, 7, 20)}),
    }
    reports.now = ChainStats(with_counts(tiers, {("hits", "remote"): 5}), {"remote": 1}, 2)
    data = reports.data()
    assert data["kvtier:lookup_hits"]["remote",] == 5
    assert data["kvtier:drive_used_bytes"]["remote", "node"] == 7


NAMED = re.compile(r"""(?:count|_count)\(\s*"(\w+)"|"(\w+_(?:chunks|loads|events|errors|openings))": """)


async def of_every_kind(path: Path) -> ChainStats:
    """The numbers of a chain that has whatever a document can ask for."""
    drives = [{"path": str(path / name), "capacity": "64MiB", "reserve": 0} for name in ("a", "b")]
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "1MiB"},
        {"type": "nvme", "path": str(path / "c"), "capacity": "64MiB", "reserve": 0},
        {"type": "nvme", "path": drives, "admission": "second_touch", "write_budget": 3, "endurance": "1PB"},
    ]
    spec = CompositeSpec.from_config({"version": 1, "tiers": tiers})
    await spec.start(part_bytes=65536, parts=1, identity={"model": "m"})
    loop = LoopThread()
    try:
        return chain_of(ServerChain, spec, EventLog(), loop).stats()
    finally:
        loop.close()
        await spec.close()


async def test_whatever_a_tier_or_the_chain_counts_has_a_metric(tmp_path: Path) -> None:
    stats = await of_every_kind(tmp_path)
    assert set(stats.tiers) == {"pinned", "nvme", "nvme1"}
    counted = {name for tier in stats.tiers.values() for name in tier.counters}
    assert "not_admitted_chunks" in counted
    assert counted - {*COUNTER_OF, *REASONS} == WITHOUT_METRIC
    shown = {name for tier in stats.tiers.values() for name in tier.gauges}
    known_in_time = {"load_bytes_per_s", "prefill_tokens_per_s", "years_left"}
    assert SHOWN_GAUGES - OF_THE_STATISTICS - shown == known_in_time
    assert shown - SHOWN_GAUGES == {"written_bytes_a_day"}, "Prometheus derives it"


def test_a_counter_that_only_some_event_brings_into_being_has_a_metric() -> None:
    root = Path(metrics.__file__).parents[2]
    sources = [*(root / "engine").rglob("*.py"), *(root / "tiers").rglob("*.py")]
    text = "".join(
        path.read_text() for path in [*sources, root / "factory" / "vllm" / "scheduling" / "placement.py"]
    )
    named = {name for names in NAMED.findall(text) for name in names if name} - {"shed_chunks"}
    assert {"late_loads", "dropped_chunks", "not_admitted_chunks"} <= named, "it finds them"
    assert named - {*COUNTER_OF, *REASONS, "pending_chunks"} <= WITHOUT_METRIC


def timed(durations: Durations) -> ChainStats:
    tiers = {"nvme": TierStats(3, 10, 20, histograms={"load_s": durations.histogram()})}
    return ChainStats(tiers, {"nvme": 0}, 0)


def test_durations_are_reported_once_each_and_their_sum_is_kept(reports: Reports) -> None:
    durations = Durations()
    for duration_s in (0.002, 0.0021, 7.0):
        durations.add(duration_s)
    reports.now = timed(durations)
    observed = reports.data()["kvtier:load_duration_seconds"]["nvme",]
    assert observed == pytest.approx([0.00205, 0.00205, 7.0])
    durations.add(0.3)
    reports.now = timed(durations)
    assert reports.data()["kvtier:load_duration_seconds"]["nvme",] == pytest.approx([0.3])


def test_a_vllm_without_histograms_gets_the_rest(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload import base

    monkeypatch.delattr(base, "OffloadingHistogramMetadata", raising=False)
    monkeypatch.delattr(OffloadingConnectorStats, "observe_histogram", raising=False)
    durations = Durations()
    durations.add(0.1)
    reports.now = timed(durations)
    assert reports.data()["kvtier:used_bytes"] == {("nvme",): 10}
    kinds = {name.removeprefix("kvtier:") for name in metrics.definitions()}
    assert "load_seconds" in kinds
    assert "load_duration_seconds" not in kinds


def test_microseconds_are_reported_as_seconds_and_of_no_tier_what_no_tier_has(reports: Reports) -> None:
    reports.now = chain_stats(
        {}, {("stored_us", "nvme"): 1_500_000, ("misses", "pinned"): 3, ("slotless", "pinned"): 2}
    )
    assert reports.changes() == {
        ("kvtier:store_seconds", ("nvme",)): pytest.approx(1.5),
        ("kvtier:lookup_misses", ()): 3,
        ("kvtier:lookup_slotless", ()): 2,
    }


class Idle:
    """A reporter of a server that only steps, with the clock and the numbers in the test's hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.now = chain_stats({}, {})
        self.looks = 0
        self.reporter = metrics.Reporter(self._stats, self.clock)
        self.told()

    def moving(self, chunks: int, stored: int = 0) -> None:
        self.now = replace(
            chain_stats({}, {("stored_chunks", "nvme"): stored}), pending_chunks={"nvme": chunks}
        )

    def told(self) -> float | None:
        """Of how many more stored chunks the server is told in the step after the numbers were read."""
        self.reporter.report()
        self.reporter.look()
        report = self.reporter.report()
        return None if report is None else report.data["data"].get("kvtier:store_chunks", {}).get(("nvme",))

    def _stats(self) -> ChainStats:
        self.looks += 1
        return self.now


@pytest.fixture
def idle() -> Idle:
    return Idle()


def test_a_server_that_never_worked_need_not_step(idle: Idle) -> None:
    idle.moving(1)
    idle.reporter.look()
    assert not idle.reporter.is_owed()


def test_an_idle_server_steps_until_nothing_moves_and_all_is_reported(idle: Idle) -> None:
    idle.reporter.busy()
    idle.moving(2)
    assert idle.reporter.is_owed()
    idle.told()
    idle.reporter.look()
    assert idle.reporter.is_owed(), "it still moves"
    idle.moving(0, stored=2)
    assert idle.told() == 2
    assert not idle.reporter.is_owed()


def test_an_idle_server_steps_once_for_what_nobody_has_looked_at(idle: Idle) -> None:
    idle.reporter.busy()
    idle.moving(0, stored=2)
    assert idle.reporter.is_owed()
    report = idle.reporter.report()
    assert report is not None
    assert report.data["data"]["kvtier:store_chunks"]["nvme",] == 2
    assert not idle.reporter.is_owed(), "or a paused server's empty steps would not end"
    idle.reporter.busy()
    idle.clock.now_s += metrics.LOOK_EVERY_S
    assert not idle.reporter.is_owed(), "nothing has come of it"


def test_work_that_comes_while_the_numbers_are_read_is_reported_too(idle: Idle) -> None:
    def stats() -> ChainStats:
        reporter.busy()
        return idle.now

    reporter = metrics.Reporter(stats, idle.clock)
    for _ in range(3):
        reporter.report()
        reporter.look()
    assert reporter.is_owed()


def test_numbers_that_cannot_be_read_are_told_once_and_stop_no_step(caplog: pytest.LogCaptureFixture) -> None:
    def stats() -> ChainStats:
        raise KeyError("hits")

    clock = Clock()
    reporter = metrics.Reporter(stats, clock)
    for _ in range(3):
        reporter.busy()
        assert not reporter.is_owed()
        assert reporter.report() is None
        reporter.look()
        clock.now_s += metrics.LOOK_EVERY_S
    assert [record.message for record in caplog.records if "stand still" in record.message] != []
    assert len(caplog.records) == 1


def test_a_drive_that_hangs_keeps_no_server_awake(idle: Idle) -> None:
    idle.reporter.busy()
    idle.moving(1)
    idle.clock.now_s += metrics.SETTLE_S / 2
    idle.told()
    idle.reporter.look()
    assert idle.reporter.is_owed()
    idle.clock.now_s += metrics.SETTLE_S
    assert not idle.reporter.is_owed()


def test_a_step_reads_no_numbers_and_none_are_read_for_a_server_that_does_not_step(idle: Idle) -> None:
    idle.looks = 0
    idle.reporter.busy()
    assert [idle.reporter.report() for _ in range(5)] == [None] * 5
    assert idle.looks == 0
    for _ in range(5):
        idle.reporter.look()
    assert idle.looks == 1


def test_an_idle_server_that_asks_again_and_again_looks_now_and_then(idle: Idle) -> None:
    idle.looks = 0
    idle.reporter.busy()
    idle.moving(1)
    for _ in range(5):
        assert idle.reporter.is_owed()
        idle.reporter.report()
    assert idle.looks == 1
    idle.clock.now_s += metrics.LOOK_EVERY_S
    assert idle.reporter.is_owed()
    assert idle.looks == 2


def test_what_changes_before_a_report_is_taken_is_in_the_next_one(idle: Idle) -> None:
    told = []
    idle.reporter.report()
    for stored in (1, 3):
        idle.moving(0, stored=stored)
        idle.reporter.look()
    for _ in range(2):
        report = idle.reporter.report()
        assert report is not None
        told.append(report.data["data"]["kvtier:store_chunks"]["nvme",])
        idle.reporter.look()
    assert told == [1, 2]


async def test_reports_are_made_ready_while_the_server_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()

    def stats() -> ChainStats:
        looked.set()
        return chain_stats({}, {("hits", "nvme"): 5})

    monkeypatch.setattr(metrics, "INTERVAL_S", 0.0)
    reporter = metrics.Reporter(stats)
    reporter.report()
    running = asyncio.create_task(reporter.run())
    await asyncio.wait_for(looked.wait(), 10)
    running.cancel()
    report = reporter.report()
    assert report is not None, "a look is one step of the loop"
    assert report.data["data"]["kvtier:lookup_hits"]["nvme",] == 5
