"""The dashboard and the alert rules show metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from markdown_files import ROOT

from kvtier.engine.metrics.names import METRICS, Kind, Metric

yaml = pytest.importorskip("yaml")

DEPLOY = ROOT / "deploy"
TOOL = ROOT / "tools" / "dashboard.py"
NAME = re.compile(r"kvtier:\w+")
GROUPS = re.compile(r"by \(([^)]*)\)")
OF_PROMETHEUS = {"instance", "le"}  # labels that it adds
EXPORTED = {metric.exported: metric for metric in METRICS if metric.kind is not Kind.HISTOGRAM} | {
    f"{metric.name}_{part}": metric
    for metric in METRICS
    if metric.kind is Kind.HISTOGRAM
    for part in ("bucket", "count", "sum")
}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())
    return found


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def shown(expression: str) -> list[Metric]:
    return [EXPORTED[name] for name in NAME.findall(expression)]


@pytest.mark.parametrize("expression", list(expressions()))
def test_a_query_names_metrics_that_exist_and_labels_that_they_have(expression: str) -> None:
    metrics = shown(expression)
    assert metrics
    labels = {label.strip() for group in GROUPS.findall(expression) for label in group.split(",")}
    known = {label for metric in metrics for label in metric.labels} | OF_PROMETHEUS
    assert labels <= known
    if "rate(" in expression or "increase(" in expression:
        assert all(metric.kind is not Kind.GAUGE for metric in metrics)
    assert expression.count("(") == expression.count(")")


def test_the_file_is_what_the_code_gives() -> None:
    ended = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}run make dashboards"


def test_panels_overlap_nowhere_and_their_legends_name_labels_of_their_query() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            groups = ", ".join(GROUPS.findall(target["expr"]))
            assert all(label in groups for label in re.findall(r"{{(\w+)}}", target["legendFormat"]))


def test_each_rule_is_tested_firing_and_silent() -> None:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    seen = {(one["alertname"], bool(one["exp_alerts"])) for test in tests for one in test["alert_rule_test"]}
    assert seen == {(rule["alert"], fires) for rule in group["rules"] for fires in (True, False)}


def test_the_rules_do_what_their_tests_say() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("needs promtool")
    for command in (["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]):
        ended = subprocess.run([promtool, *command], cwd=DEPLOY, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
