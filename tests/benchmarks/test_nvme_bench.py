"""The NVMe benchmark, with sizes that take no time; its real runs are for `make bench-nvme`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

nvme = pytest.importorskip("nvme", reason="the benchmark is not part of the package")

SAMPLES = {
    ("store_one", 65536, "kvtier"): [nvme.Sample(rate, 0.5, [0.001]) for rate in (300.0, 100.0, 200.0)],
    ("store_one", 65536, "vllm_fs"): [nvme.Sample(50.0, 2.0, [0.004])],
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our store alone, a few megabytes."""
    monkeypatch.setattr(nvme, "STORES", {"kvtier": nvme.Kvtier})
    monkeypatch.setattr(nvme.shutil, "which", lambda name: None)  # no fio
    for name, value in {
        "REQUEST_CHUNKS": 4,
        "AT_ONCE": 2,
        "QUICK_BYTES": 2 * nvme.MIB,
        "FLUSHES": 1,
        "LOOKUP_COUNTS": (1000,),
    }.items():
        monkeypatch.setattr(nvme, name, value)


def test_ratios_are_of_medians_and_say_what_they_compare() -> None:
    result = nvme.summarised({"samples": SAMPLES, "limits": {("store_one", 65536): [400.0]}})
    assert result["ratios"] == [
        {"case": "store_one", "chunk_bytes": 65536, "peer": "vllm_fs", "ratio": 4.0},
        {"case": "store_one", "chunk_bytes": 65536, "peer": "fio", "ratio": 0.5},
    ]
    assert result["cpu"] == [{"case": "store_one", "chunk_bytes": 65536, "peer": "vllm_fs", "ratio": 0.25}]


@pytest.mark.parametrize("at_once", [1, nvme.AT_ONCE])
@pytest.mark.parametrize("chunk_bytes", nvme.CHUNK_SIZES)
def test_a_run_is_bounded_and_has_all_its_requests_at_once(chunk_bytes: int, at_once: int) -> None:
    case = nvme.Case(chunk_bytes, "store", at_once)
    assert case.requests % at_once == 0
    assert 0 < case.total_bytes <= max(nvme.CASE_BYTES, at_once * nvme.REQUEST_CHUNKS * chunk_bytes)


def test_keys_of_different_requests_differ() -> None:
    keys = [key for prefix in (b"", b"warm") for i in range(4) for key in nvme.request(i, prefix)[0]]
    assert len(set(keys)) == len(keys)


def test_every_store_is_first_in_its_turn() -> None:
    orders = [nvme._rotated(["a", "b", "c"], run) for run in range(4)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a"]


@pytest.mark.usefixtures("tiny")
def test_a_quick_run_writes_its_figures_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, scratch = tmp_path / "figures.json", tmp_path / "scratch"
    arguments = ["nvme.py", "--quick", "--json", str(file), "--dir", str(scratch)]
    monkeypatch.setattr(sys, "argv", arguments)
    nvme.main()
    result = json.loads(file.read_text())
    places = {(row["case"], row["chunk_bytes"], row["store"]) for row in result["medians"]}
    cases = ("store_one", "load_one", "store_many", "load_many")
    assert places == {(case, size, "kvtier") for case in cases for size in nvme.QUICK_SIZES}
    assert result["ratios"] == [], "there was nobody to compare with"
    assert result["open"].keys() == {"chunks", "open_s", "rss_mib"}
    assert [cost["chunks"] for cost in result["lookup"]] == [1000]
    assert result["machine"]["file_system"]
    assert list(scratch.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: Path, chunk_bytes: int) -> None:
        (root / "half written").write_bytes(b"something")
        raise KeyboardInterrupt

    monkeypatch.setattr(nvme, "flush_cost", interrupted)
    monkeypatch.setattr(sys, "argv", ["nvme.py", "--quick", "--dir", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        nvme.main()
    assert list(tmp_path.iterdir()) == []
