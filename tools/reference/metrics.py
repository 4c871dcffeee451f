"""The metrics, from their table."""

from __future__ import annotations

from kvtier.engine.metrics.names import METRICS
from kvtier.tiers import RemoveReason

from .tables import MADE, code, table

OPENING = """# Metrics

vLLM's `/metrics` page shows these beside its own, from vLLM 0.24 on. [vLLM](../vllm.md#metrics) says when
they change. [Watching](../watching.md) shows how a program of your own exports them. The `tier` label is
`pinned`, `nvme`, or `nvme1` and so on for further `nvme` entries. The `drive` label is the path of a drive's
directory, of a tier with several. A histogram has the series `_bucket`, `_count` and `_sum`.

"""
CLOSING = f"""
Reasons of a removal: {", ".join(code(str(reason)) for reason in RemoveReason)}.

The copies between device and pinned memory are in vLLM's own `vllm:kv_offload_load_time_total` and
`vllm:kv_offload_store_time_total`.
"""


def page() -> str:
    headings = ("metric", "kind", "labels", "meaning")
    rows = ((code(m.exported), m.kind.value, ", ".join(map(code, m.labels)), m.help) for m in METRICS)
    return MADE + OPENING + table(headings, rows) + CLOSING
