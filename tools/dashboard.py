"""Writes Grafana's dashboard from the table of metrics: `make dashboards`.

    .venv/bin/python tools/dashboard.py [--check]

A row answers one question. With `--check` nothing is written, and the exit status is 1 if the file is not
what the code gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parents[1] / "deploy" / "grafana.json"
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
COLUMNS = 24  # of Grafana's grid
HEIGHT = 8
FILTER = 'instance=~"$instance"'
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """One graph: its queries by their legend."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]


def _rate(name: str, by: str = "tier") -> str:
    return f"sum by ({by}) (rate({name}{{{FILTER}}}{RATE}))"


def _now(name: str, how: str = "sum") -> str:
    return f"{how} by (tier) ({name}{{{FILTER}}})"


def _quantile(name: str, quantile: float) -> str:
    return f"histogram_quantile({quantile}, sum by (le, tier) (rate({name}_bucket{{{FILTER}}}{RATE})))"


HITS, MISSES = "kvtier:lookup_hits_total", "kvtier:lookup_misses_total"
LOOKUPS = f"scalar(sum(rate({HITS}{{{FILTER}}}{RATE})) + sum(rate({MISSES}{{{FILTER}}}{RATE})))"

ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Does it help?",
        (
            Panel("Hit rate by tier", "percentunit", [("{{tier}}", f"{_rate(HITS)} / {LOOKUPS}")]),
            Panel("Chunks loaded instead of computed", "cps", [("{{tier}}", _rate(HITS))]),
            Panel("Found, and computed sooner", "cps", [("{{tier}}", _rate("kvtier:declined_chunks_total"))]),
        ),
    ),
    (
        "Is it healthy?",
        (
            Panel(
                "Breaker (0 closed, 1 trial, 2 open)",
                "none",
                [("{{tier}}", _now("kvtier:breaker_state", "max"))],
            ),
            Panel(
                "Errors",
                "cps",
                [
                    ("{{tier}} I/O", _rate("kvtier:io_errors_total")),
                    ("{{tier}} corrupt", _rate("kvtier:corrupt_chunks_total")),
                ],
            ),
            Panel(
                "Late and dropped",
                "cps",
                [
                    ("{{tier}} late", _rate("kvtier:late_loads_total")),
                    ("{{tier}} dropped", _rate("kvtier:dropped_chunks_total")),
                ],
            ),
        ),
    ),
    (
        "Is there room?",
        (
            Panel(
                "Used of capacity",
                "percentunit",
                [("{{tier}}", f"{_now('kvtier:used_bytes')} / {_now('kvtier:capacity_bytes')}")],
            ),
            Panel(
                "Chunks that left",
                "cps",
                [("{{tier}} {{reason}}", _rate("kvtier:removed_chunks_total", "tier, reason"))],
            ),
            Panel(
                "Waiting to be stored, and slots in use",
                "none",
                [
                    ("{{tier}}", _now("kvtier:pending_stores")),
                    ("slots", f"sum(kvtier:pinned_slots{{{FILTER}}})"),
                ],
            ),
        ),
    ),
    (
        "How fast is it?",
        (
            Panel(
                "Bytes moved",
                "Bps",
                [
                    ("{{tier}} load", _rate("kvtier:load_bytes_total")),
                    ("{{tier}} store", _rate("kvtier:store_bytes_total")),
                ],
            ),
            Panel(
                "A load takes",
                "s",
                [
                    ("{{tier}} median", _quantile("kvtier:load_duration_seconds", 0.5)),
                    ("{{tier}} p99", _quantile("kvtier:load_duration_seconds", 0.99)),
                ],
            ),
            Panel(
                "A store takes",
                "s",
                [
                    ("{{tier}} median", _quantile("kvtier:store_duration_seconds", 0.5)),
                    ("{{tier}} p99", _quantile("kvtier:store_duration_seconds", 0.99)),
                ],
            ),
        ),
    ),
    (
        "How long does the drive last?",
        (
            Panel(
                "Written a day",
                "bytes",
                [("{{tier}}", f"max by (tier) (deriv(kvtier:written_bytes{{{FILTER}}}[1d])) * 86400")],
            ),
            Panel("Drive writes a day", "none", [("{{tier}}", _now("kvtier:drive_writes_a_day", "max"))]),
            Panel("Years left", "none", [("{{tier}}", _now("kvtier:years_left", "min"))]),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    return {
        "uid": "kvtier",
        "title": "kvtier",
        "description": "KV-cache offload: what the tiers save, and how they are.",
        "tags": ["kvtier", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels()),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "DS_PROMETHEUS", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Server",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": "label_values(kvtier:used_bytes, instance)", "refId": "instance"},
            "includeAll": True,
            "multi": True,
            "refresh": 2,
        },
    ]


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for question, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": question,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        width = COLUMNS // len(panels)
        for column, panel in enumerate(panels):
            number += 1
            place = {"h": HEIGHT, "w": width, "x": column * width, "y": y + 1}
            yield _panel(panel, number, place)
        y += 1 + HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (legend, expression) in enumerate(panel.queries)
        ],
    }


def main() -> int:
    text = json.dumps(dashboard(), indent=2) + "\n"
    if FILE.exists() and FILE.read_text() == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"deploy/{FILE.name} is not what the code gives: make dashboards")
        return 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
