from __future__ import annotations

import pytest

from kvtier.tiers.nvme.failures import LOG_PERIOD_S, FailureLog


def test_the_first_failure_of_a_period_has_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    monkeypatch.setattr("kvtier.tiers.nvme.failures.time.monotonic", lambda: now_s)
    log = FailureLog("nvme")
    log.add("one")
    log.add("two")
    now_s = LOG_PERIOD_S
    log.add("three")
    assert caplog.messages == ["nvme: one", "nvme: three"]
