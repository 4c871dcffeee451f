"""The metrics, from their table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvtier.factory.vllm import metrics as known
from kvtier.tiers import RemoveReason

from .tables import MADE, code, table

OPENING = """# Metrics

vLLM's `/metrics` page shows these beside its own, from vLLM 0.24 on. [vLLM](../vllm.md#metrics) says when
they change. The `tier` label is `pinned`, `nvme`, or `nvme1` and so on for further `nvme` entries. What
belongs to the whole chain carries `tier="pinned"`. The `drive` label is the path of a drive's directory, of a
tier with several.

"""
CLOSING = f"""
Reasons of a removal: {", ".join(code(str(reason)) for reason in RemoveReason)}.

The copies between device and pinned memory are in vLLM's own `vllm:kv_offload_load_time_total` and
`vllm:kv_offload_store_time_total`.
"""


class Metric(NamedTuple):
    """A metric as Prometheus shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def page() -> str:
    headings = ("metric", "kind", "labels", "meaning")
    rows = ((code(m.name), m.kind, ", ".join(map(code, m.labels)), m.help) for m in metrics())
    return MADE + OPENING + table(headings, rows) + CLOSING


def metrics() -> Iterator[Metric]:
    """Every metric; Prometheus gives counters their suffix."""
    tier, drive = ("tier",), ("tier", "drive")
    for name, text in known.COUNTERS.values():
        yield Metric(f"{name}_total", "counter", tier, text)
    yield Metric(f"{known.REMOVED[0]}_total", "counter", ("tier", "reason"), known.REMOVED[1])
    for name, text in (known.USED, known.CAPACITY, *known.GAUGES.values(), known.PENDING):
        yield Metric(name, "gauge", tier, text)
    yield Metric(known.PINNED[0], "gauge", (), known.PINNED[1])
    for name, text in known.DRIVE_COUNTERS.values():
        yield Metric(f"{name}_total", "counter", drive, text)
    for name, text in (known.DRIVE_USED, known.DRIVE_BREAKER):
        yield Metric(name, "gauge", drive, text)
