"""Systems in processes of their own: what they measure, what they import, how they fail and end."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

worker = pytest.importorskip("comparison.worker", reason="the benchmark is not part of the package")

from comparison.cases import Case  # noqa: E402 - once it is known to be there
from comparison.memory import random_file  # noqa: E402
from comparison.revisions import checked_out  # noqa: E402
from comparison.systems import CHECKOUT, System  # noqa: E402

STORING = Case(16 * 1024, "store", 2, aim_bytes=512 * 1024, request_chunks=4)
KVTIER = System("kvtier", "kvtier", CHECKOUT, 0.0, skips_syncs=False, segment_bytes=None)


@pytest.fixture
def memory_fd() -> Iterator[int]:
    with random_file(STORING.total_bytes) as fd:
        yield fd


@pytest.mark.slow
def test_a_pair_is_stored_loaded_and_removed(folder: Path, memory_fd: int) -> None:
    mine = worker.Worker(KVTIER, folder, memory_fd)
    try:
        samples = mine.run_pair(STORING)
    finally:
        mine.close()
    assert samples.keys() == {"store_many", "load_many"}
    stored, loaded = samples["store_many"], samples["load_many"]
    assert stored.total_bytes == loaded.total_bytes == STORING.total_bytes
    assert len(stored.latencies_s) == len(loaded.latencies_s) == STORING.requests
    assert stored.durable_s is not None
    assert loaded.durable_s is None
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("known", ["HEAD", "3f6be3a"])
def test_another_revision_runs_from_its_own_files(
    folder: Path, memory_fd: int, revision: str, known: str
) -> None:
    """One of today's layout, and one whose `tiers` is one flat folder."""
    if os.system(f"git -C {CHECKOUT} cat-file -e {known}^{{commit}} 2>/dev/null"):
        pytest.skip(f"a shallow clone, without {known}")
    with checked_out(known) as files:
        other = dataclasses.replace(KVTIER, name="other", checkout=files)
        mine = worker.Worker(other, folder, memory_fd)
        try:
            assert mine.run_pair(STORING).keys() == {"store_many", "load_many"}
        finally:
            mine.close()
    assert not files.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("revision")
def test_nothing_is_imported_from_elsewhere(folder: Path, memory_fd: int) -> None:
    with checked_out("HEAD") as files:
        (files / "engine" / "loop.py").write_text("raise ImportError('the other one')")
        mine = worker.Worker(dataclasses.replace(KVTIER, checkout=files), folder, memory_fd)
        try:
            with pytest.raises(RuntimeError, match="the other one"):
                mine.run_pair(STORING)
        finally:
            mine.close()


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here_and_the_process_goes_on(folder: Path, memory_fd: int) -> None:
    mine = worker.Worker(KVTIER, folder / "missing", memory_fd)
    try:
        with pytest.raises(RuntimeError, match=r"kvtier: [\s\S]*FileNotFoundError"):
            mine.run_pair(STORING)
        (folder / "missing").mkdir()
        assert mine.run_pair(STORING)
    finally:
        mine.close()


@pytest.mark.slow
def test_a_process_that_ended_is_named(folder: Path, memory_fd: int) -> None:
    mine = worker.Worker(KVTIER, folder, memory_fd)
    try:
        os.kill(mine.process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the process of kvtier has ended"):
            mine.run_pair(STORING)
    finally:
        mine.close()
