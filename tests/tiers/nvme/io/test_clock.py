"""A clock that is far off is no reason to fail."""

from __future__ import annotations

import time

import pytest

from kvtier.tiers.nvme.io.clock import TIME_MAX_S, now_s


@pytest.mark.parametrize(
    ("clock_s", "written_s"),
    [(-500.5, 0), (0.0, 0), (1.9, 1), (float(TIME_MAX_S), TIME_MAX_S), (2.0**32 + 1, TIME_MAX_S)],
)
def test_the_time_is_one_that_can_be_written_down(
    monkeypatch: pytest.MonkeyPatch, clock_s: float, written_s: int
) -> None:
    monkeypatch.setattr(time, "time", lambda: clock_s)
    assert now_s() == written_s
