"""A rate and a projected life, from numbers that no clock can spoil."""

from __future__ import annotations

import pytest

from kvtier.tiers.nvme.wear.record import DAY_MS, FADES_MS, Wear

GB = 10**9
HOUR_MS = DAY_MS // 24


NEW = Wear()


def written_daily(days: int, bytes_a_day: int, wear: Wear = NEW) -> Wear:
    """So much is written and noted every hour, by one process."""
    now_ms = wear.noted_at_ms
    for _ in range(days * 24):
        now_ms += HOUR_MS
        wear = wear._replace(written_bytes=wear.written_bytes + bytes_a_day // 24).noted(now_ms, 0, 0)
    return wear


def test_what_is_written_a_day_follows_from_about_a_week() -> None:
    wear = written_daily(30, 100 * GB)
    assert wear.bytes_a_day == pytest.approx(100 * GB, rel=0.01)
    assert written_daily(7, 1000 * GB, wear).bytes_a_day == pytest.approx(670 * GB, rel=0.05)
    assert written_daily(60, 1000 * GB, wear).bytes_a_day == pytest.approx(1000 * GB, rel=0.01)
    assert written_daily(60, 0, wear).bytes_a_day < GB


def test_on_the_first_day_it_is_what_was_written_so_far() -> None:
    """A cache that is filled in its first hour is not filled 24 times a day."""
    assert Wear(written_bytes=5 * GB).bytes_a_day == 5 * GB
    filled = Wear(written_bytes=500 * GB).noted(HOUR_MS, 0, 0)
    assert filled.bytes_a_day == pytest.approx(500 * GB, rel=0.01)


def test_years_left_are_those_of_what_is_left() -> None:
    wear = written_daily(100, 1000 * GB)._replace(endurance_bytes=1_200_000 * GB, capacity_bytes=2000 * GB)
    assert wear.drive_writes_a_day == pytest.approx(0.5, rel=0.01)
    assert wear.years_left == pytest.approx(1100 / 365.25, rel=0.01)
    assert wear._replace(endurance_bytes=50_000 * GB).years_left == 0
    assert wear._replace(endurance_bytes=0).years_left is None
    assert Wear(endurance_bytes=GB).years_left is None, "nothing was written yet"
    assert Wear(written_bytes=GB).drive_writes_a_day == 0, "of no cap"


def test_only_time_in_which_the_store_was_open_counts() -> None:
    wear = Wear().noted(1_000, 1_000, 0).noted(61_000, 1_000, 0)
    assert wear.recent_ms == 60_000
    later = wear.noted(10_000_000, 9_990_000, 0)
    assert later.recent_ms == pytest.approx(70_000, abs=2), "nobody had it open in between"
    assert later.passed_ms(10_005_000) == 5_000


def test_a_machine_that_was_started_again_counts_from_its_start() -> None:
    wear = Wear().noted(FADES_MS, FADES_MS - 60_000, 0)
    again = wear.noted(90_000, 50_000, 0)
    assert again.recent_ms == pytest.approx(100_000, abs=10)
    assert wear.passed_ms(90_000) == 90_000, "that much has passed at least"


def test_two_processes_count_the_same_minute_once() -> None:
    wear = Wear()
    for now_ms in range(60_000, 600_001, 60_000):
        wear = wear.noted(now_ms, 0, 0)  # the one
        wear = wear.noted(now_ms + 30_000, 30_000, 0)  # and the other
    assert wear.recent_ms == pytest.approx(630_000, abs=700)
