"""From samples to figures: medians of runs, the runs that they are of, and kvtier's ratios to all others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .cases import Sample
from .memory import MIB

OURS = "kvtier"


class Place(NamedTuple):
    """What a figure is of."""

    case: str
    chunk_bytes: int
    system: str


Samples = Mapping[Place, Sequence[Sample]]  # one a run, in the order of the runs
Figures = dict[str, float]


def summarised(samples: Samples, limits: Mapping[Place, Sequence[float]]) -> dict[str, Any]:
    """Medians, and kvtier's ratios to them; `limits` are rates of what is no store."""
    medians = {place: figures_of(of_place) for place, of_place in samples.items()}
    medians |= {place: {"mib_per_s": statistics.median(rates) / MIB} for place, rates in limits.items()}
    runs = {place: runs_of(of_place) for place, of_place in samples.items()}
    runs |= {place: {"mib_per_s": [rate / MIB for rate in rates]} for place, rates in limits.items()}
    others = [place for place in medians if place.system != OURS]
    everybody = [sample for of_place in samples.values() for sample in of_place]
    return {
        "ratios": ratios(medians, others, "mib_per_s"),
        "durable_ratios": ratios(medians, others, "durable_mib_per_s"),
        "cpu": ratios(medians, others, "cpu_s_per_gib"),
        "medians": [
            {
                "case": place.case,
                "chunk_bytes": place.chunk_bytes,
                "store": place.system,
                **figures,
                "runs": runs[place],
            }
            for place, figures in medians.items()
        ],
        "starts": {"all": len(everybody), "at_rest": sum(sample.at_rest for sample in everybody)},
    }


def figures_of(samples: Sequence[Sample]) -> Figures:
    """One system in one case: medians over the runs; percentiles over all their requests."""
    latencies_ms = sorted(1000 * latency_s for sample in samples for latency_s in sample.latencies_s)
    p50_ms = latencies_ms[len(latencies_ms) // 2]
    p99_ms = latencies_ms[min(len(latencies_ms) - 1, int(len(latencies_ms) * 0.99))]
    found = {
        "mib_per_s": statistics.median(sample.bytes_per_s for sample in samples) / MIB,
        "cpu_s_per_gib": statistics.median(sample.cpu_s_per_gib for sample in samples),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "p99_by_p50": p99_ms / p50_ms,
    }
    durable = [sample.durable_bytes_per_s for sample in samples if sample.durable_bytes_per_s is not None]
    if durable:
        found["durable_mib_per_s"] = statistics.median(durable) / MIB
    syncs = [sample.syncs_s for sample in samples if sample.syncs_s is not None]
    if syncs:
        found["syncs"] = statistics.median(len(times_s) for times_s in syncs)
        found["syncs_s"] = statistics.median(sum(times_s) for times_s in syncs)
    return found


def runs_of(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """What each run of one system in one case gave, in the order of the runs."""
    return {
        "mib_per_s": [sample.bytes_per_s / MIB for sample in samples],
        "cpu_s_per_gib": [sample.cpu_s_per_gib for sample in samples],
    }


def ratios(medians: Mapping[Place, Figures], others: Sequence[Place], name: str) -> list[dict[str, Any]]:
    """kvtier's figure of that name divided by each other's, where both have one."""
    found = []
    for place in others:
        ours = medians[place._replace(system=OURS)]
        if name in ours and name in medians[place]:
            about = {"case": place.case, "chunk_bytes": place.chunk_bytes, "peer": place.system}
            found.append({**about, "ratio": ours[name] / medians[place][name]})
    return found
