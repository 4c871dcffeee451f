"""When a drive has come to rest."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from mounts import in_memory, on_loop

drive = pytest.importorskip("comparison.drive", reason="the benchmark is not part of the package")

MIB = 1024 * 1024


def quiet(looks: Iterable[tuple[int, int]]) -> tuple[bool, int]:
    """Whether a drive with these counters rests, and how often it was waited for."""
    states = iter(looks)
    waits: list[float] = []
    rests = drive.is_quiet(lambda: drive.Writes(*next(states)), waits.append)
    return rests, len(waits)


def test_a_drive_rests_that_does_nothing_between_two_looks() -> None:
    assert quiet([(5 * MIB, 0), (5 * MIB, 0)]) == (True, 1)


def test_a_drive_that_still_writes_is_waited_for() -> None:
    assert quiet([(0, 3), (64 * MIB, 1), (90 * MIB, 0), (90 * MIB, 0)]) == (True, 3)


def test_a_call_in_flight_is_no_rest_though_nothing_is_done() -> None:
    assert quiet([(0, 1), (0, 1), (0, 0)]) == (True, 2)


def test_what_others_write_now_and_then_does_not_keep_a_run_from_beginning() -> None:
    assert quiet([(0, 0), (MIB // 2, 0)]) == (True, 1)


def test_a_drive_that_never_rests_is_given_up_on() -> None:
    assert quiet((i * 8 * MIB, 4) for i in range(1000)) == (False, drive.LOOKS_MAX)


@pytest.mark.root
def test_the_kernel_counts_what_is_written(tmp_path: Path) -> None:
    with on_loop(tmp_path, "ext4", 64 * MIB) as (point, _):
        device = point.stat().st_dev
        counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        before = drive.Writes.read(counters.read_text())
        (point / "file").write_bytes(os.urandom(8 * MIB))
        assert drive.come_to_rest(point)
        after = drive.Writes.read(counters.read_text())
    assert 8 * MIB <= after.done_bytes - before.done_bytes < 32 * MIB


@pytest.mark.root
def test_what_has_no_drive_is_not_said_to_rest(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory", MIB) as point:
        assert not drive.come_to_rest(point)


def test_a_file_system_that_cannot_be_synced_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        drive.sync_file_system(tmp_path / "missing")
