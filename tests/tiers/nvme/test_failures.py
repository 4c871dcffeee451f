from __future__ import annotations

import pytest

from kvtier.tiers.nvme.failures import LOG_PERIOD_S, FailureLog


def test_the_first_failure_of_a_period_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    log = FailureLog("nvme", lambda: now_s)
    log.add("one")
    log.add("two")
    now_s = LOG_PERIOD_S
    log.add("three")
    assert caplog.messages == ["nvme: one", "nvme: three (and 1 more before it)"]


def test_a_bug_is_logged_with_its_traceback_whatever_the_world_refuses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = FailureLog("nvme", lambda: 0.0)
    log.add("refused")
    try:
        raise ValueError("a bug")
    except ValueError as error:
        log.add_bug("upkeep", error)
        log.add_bug("upkeep", error)
    assert len(caplog.records) == 2
    assert caplog.records[1].exc_info is not None
