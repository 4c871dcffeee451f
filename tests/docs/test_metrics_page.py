"""docs/vllm.md lists the metrics that the plugin exports, under the names that /metrics shows."""

from __future__ import annotations

import re

from markdown_files import ROOT

from kvtier.engine.metrics.names import METRICS
from kvtier.tiers import RemoveReason

PAGE = (ROOT / "docs" / "vllm.md").read_text()
ROW = re.compile(r"^\| `(kvtier:\w+)` \| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"\bkvtier:[a-z_]+")

EXPORTED = {metric.exported for metric in METRICS}


def test_the_table_has_every_metric_once() -> None:
    rows = [name for name, _ in ROW.findall(PAGE)]
    assert sorted(rows) == sorted(EXPORTED)


def test_the_text_names_no_other_metric() -> None:
    assert set(NAME.findall(PAGE)) <= EXPORTED


def test_every_reason_of_a_removal_is_listed() -> None:
    row = dict(ROW.findall(PAGE))["kvtier:removed_chunks_total"]
    assert all(f"`{reason}`" in row for reason in RemoveReason)
