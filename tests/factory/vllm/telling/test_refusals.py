"""vLLM's line about a refused store comes once a minute, and no other line is lost."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
from chain_rig import Clock

from kvtier.factory.vllm.telling.refusals import LINE_EVERY_S, RefusalFilter, refusal_logger


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("vllm", logging.WARNING, "", 1, message, ("r1",), None)


def test_one_refused_store_a_minute_is_said_and_everything_else_always() -> None:
    clock = Clock()
    quiet = RefusalFilter(clock)
    said = []
    for second in range(int(2 * LINE_EVERY_S)):
        clock.now_s = float(second)
        said.append(quiet.filter(record("Request %s: cannot store chunks")))
        assert quiet.filter(record("Request %s hit 3 chunks"))
    assert [second for second, is_said in enumerate(said) if is_said] == [0, LINE_EVERY_S]


def test_the_logger_is_that_of_the_module_which_defines_vllms_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert refusal_logger() is None
    scheduler = type("OffloadingConnectorScheduler", (), {"__module__": "elsewhere.scheduler"})
    monkeypatch.setattr(sys.modules[name], "OffloadingConnectorScheduler", scheduler, raising=False)
    assert refusal_logger() is logging.getLogger("elsewhere.scheduler")
