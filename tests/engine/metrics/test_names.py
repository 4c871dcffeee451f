"""The table of metrics."""

from __future__ import annotations

import re

from kvtier.engine.metrics.names import METRICS, Kind


def test_a_name_is_there_once_and_of_the_form_that_vllms_have() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"kvtier:[a-z_]+", name) for name in names)


def test_units_are_base_units() -> None:
    for metric in METRICS:
        assert not re.search(r"_(us|ms|s|mib|kib|total)$", metric.name), metric.name
        assert metric.kind is not Kind.HISTOGRAM or metric.name.endswith("_seconds")


def test_one_number_is_shown_by_one_metric_with_the_same_labels() -> None:
    shown = [(metric.kind, metric.labels, metric.source) for metric in METRICS]
    assert len(set(shown)) == len(shown)
