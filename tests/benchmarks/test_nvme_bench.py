"""The NVMe benchmark, with sizes that take no time; its real runs are for `make bench-nvme`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

nvme = pytest.importorskip("nvme", reason="the benchmark is not part of the package")

from comparison import systems  # noqa: E402 - once it is known to be there
from comparison.worker import Worker  # noqa: E402

CASES = ("store_one", "load_one", "store_many", "load_many")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """kvtier alone, a few megabytes."""
    monkeypatch.setattr(systems, "peers", list)
    monkeypatch.setattr(nvme.fio, "installed", lambda: False)
    for name, value in {
        "REQUEST_CHUNKS": 4,
        "AT_ONCE": 2,
        "QUICK_SIZES": (64 * nvme.KIB,),
        "QUICK_BYTES": 2 * nvme.MIB,
        "FLUSHES": 1,
        "LOOKUP_COUNTS": (1000,),
    }.items():
        monkeypatch.setattr(nvme, name, value)


@pytest.fixture
def run(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: None) -> Any:
    """Run the script, and return what it has written."""

    def result_of(*options: str) -> Any:
        file = tmp_path / "figures.json"
        arguments = ["nvme.py", "--quick", "--json", str(file), "--dir", str(folder), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        nvme.main()
        assert list(folder.iterdir()) == [], "nothing is left behind"
        return json.loads(file.read_text())

    return result_of


def test_every_system_is_first_in_its_turn() -> None:
    orders = [nvme.rotated(["a", "b", "c"], run) for run in range(4)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a"]


@pytest.mark.slow
def test_a_quick_run_writes_its_figures(run: Any) -> None:
    result = run()
    places = {(row["case"], row["chunk_bytes"], row["store"]) for row in result["medians"]}
    assert places == {(case, size, "kvtier") for case in CASES for size in nvme.QUICK_SIZES}
    assert result["ratios"] == [], "there was nobody to compare with"
    assert result["open"].keys() == {"chunks", "open_s", "rss_mib"}
    assert [cost["chunks"] for cost in result["lookup"]] == [1000]
    assert result["machine"]["file_system"]
    assert result["starts"]["all"] == len(CASES)
    for row in result["medians"]:
        assert ("durable_mib_per_s" in row) == row["case"].startswith("store")
        assert row.get("durable_mib_per_s", 0) <= row["mib_per_s"], "what makes it durable takes its time"


@pytest.mark.slow
def test_slow_syncs_are_compared_with_none_and_with_another_revision(run: Any, revision: str) -> None:
    result = run("--sync-delay-ms", "30", "--revision", revision, "--segment-mib", "4")
    stores = {(row["store"], row["case"]): row for row in result["medians"]}
    others = {"kvtier_no_sync", f"kvtier@{revision}"}
    assert {store for store, _ in stores} == {"kvtier", *others}
    for ratios in (result["ratios"], result["durable_ratios"], result["cpu"]):
        assert {row["peer"] for row in ratios} == others
    for case in ("store_one", "store_many"):
        assert stores["kvtier_no_sync", case]["syncs"] == 0
        assert stores["kvtier", case]["syncs_s"] >= 0.03 * stores["kvtier", case]["syncs"]
    assert result["flush"]["flush_ms"] >= 30, "a flush is one sync at least"
    assert result["options"] == {"sync_delay_ms": 30, "segment_mib": 4, "revision": revision}


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(worker: Worker, case: object) -> None:
        (root,) = tmp_path.iterdir()
        (root / "half written").write_bytes(b"something")
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "run_pair", interrupted)
    monkeypatch.setattr(sys, "argv", ["nvme.py", "--quick", "--dir", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        nvme.main()
    assert list(tmp_path.iterdir()) == []


def _heed_ctrl_c() -> None:
    """A shell has what it starts in the background ignore the signal, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_leaves_nothing_behind(folder: Path) -> None:
    """Both processes get the signal, as from a terminal, while a store is open."""
    command = [sys.executable, nvme.__file__, "--dir", str(folder)]
    bench_process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=_heed_ctrl_c,
    )
    with bench_process as bench:
        while not any(folder.glob("kvtier-bench-*/kvtier-*/store/kvtier.json")):
            assert bench.poll() is None, "it still runs"
            time.sleep(0.01)
        os.killpg(bench.pid, signal.SIGINT)
    assert bench.returncode
    with pytest.raises(ProcessLookupError):
        os.killpg(bench.pid, 0)
    assert list(folder.iterdir()) == []
    homes = Path("/dev/shm").glob("kvtier-index-*/store")
    assert not [home for home in homes if str(folder) in home.read_text()]
