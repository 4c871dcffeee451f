"""Medians and ratios, from samples that are written out."""

from __future__ import annotations

from typing import Any

import pytest

figures = pytest.importorskip("comparison.figures", reason="the benchmark is not part of the package")

from comparison.cases import GIB, Sample  # noqa: E402 - once it is known to be there
from comparison.memory import MIB  # noqa: E402

OURS = figures.Place("store_one", 65536, "kvtier")
PEER = OURS._replace(system="vllm_fs")


def sample(took_s: float, **facts: Any) -> Sample:
    known = {"cpu_s": 1.0, "latencies_s": [0.001], "at_rest": True, **facts}
    return Sample(GIB, took_s, **known)


def test_ratios_are_of_medians_and_say_what_they_compare() -> None:
    samples = {OURS: [sample(took_s) for took_s in (1.0, 4.0, 2.0)], PEER: [sample(8.0, cpu_s=4.0)]}
    result = figures.summarised(samples, {OURS._replace(system="fio"): [GIB]})
    about = {"case": "store_one", "chunk_bytes": 65536}
    assert result["ratios"] == [
        {**about, "peer": "vllm_fs", "ratio": 4.0},
        {**about, "peer": "fio", "ratio": 0.5},
    ]
    assert result["cpu"] == [{**about, "peer": "vllm_fs", "ratio": 0.25}]
    assert result["durable_ratios"] == [], "nobody made anything durable"
    ours, _, fio = result["medians"]
    assert ours["runs"]["mib_per_s"] == [GIB / MIB / took_s for took_s in (1.0, 4.0, 2.0)]
    assert ours["runs"]["cpu_s_per_gib"] == [1.0] * 3
    assert fio["runs"] == {"mib_per_s": [GIB / MIB]}


def test_durable_ratios_count_what_each_needed_at_the_end() -> None:
    samples = {OURS: [sample(1.0, durable_s=1.0)], PEER: [sample(1.0, durable_s=3.0)]}
    result = figures.summarised(samples, {})
    assert [row["ratio"] for row in result["ratios"]] == [1.0]
    assert [row["ratio"] for row in result["durable_ratios"]] == [2.0]


def test_percentiles_are_of_all_requests_and_syncs_of_one_run() -> None:
    runs = [
        sample(1.0, latencies_s=[0.001] * 98, syncs_s=[0.1, 0.2]),
        sample(1.0, latencies_s=[0.004] * 2, syncs_s=[0.3] * 4),
        sample(1.0, latencies_s=[], syncs_s=[]),
    ]
    found = figures.figures_of(runs)
    assert (found["p50_ms"], found["p99_ms"], found["p99_by_p50"]) == (1.0, 4.0, 4.0)
    assert found["syncs"] == 2
    assert found["syncs_s"] == pytest.approx(0.3)
    assert found["mib_per_s"] == GIB / MIB


def test_starts_on_a_busy_drive_are_counted() -> None:
    result = figures.summarised({OURS: [sample(1.0), sample(1.0, at_rest=False)]}, {})
    assert result["starts"] == {"all": 2, "at_rest": 1}
