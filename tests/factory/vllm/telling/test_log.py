"""kvtier's lines in the server's log."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest

pytest.importorskip("vllm")  # a chain with a drive asks it for its hashes

from kvtier.factory.composite import CompositeSpec
from kvtier.factory.vllm.server import Geometry, SchedulerSide
from kvtier.factory.vllm.telling import log
from kvtier.factory.vllm.telling.facts import LABELS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

KIB = 1024
KEYS = [b"k%d" % number for number in range(4)]


def side(path: Path) -> SchedulerSide:
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": 64 * KIB},
        {"type": "nvme", "path": str(path), "capacity": "64MiB", "reserve": 0},
    ]
    spec = CompositeSpec.from_config({"version": 1, "tiers": tiers})
    geometry = Geometry(
        server=f"test-{uuid.uuid4()}", part_bytes=8 * KIB, ranks=1, parts=1, chunk_tokens=16.0
    )
    log = logging.getLogger("server")
    return SchedulerSide(spec, geometry, lambda _: {"model": "m"}, group_tokens={b"": 16}, log=log)


def test_the_start_says_what_the_tiers_hold_and_what_was_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")
    first = side(tmp_path / "nvme")
    first.placement.prepare_store("r", KEYS)
    first.placement.complete_store(KEYS, success=True)
    first.close()
    second = side(tmp_path / "nvme")
    second.close()
    started = [line for line in caplog.messages if " a token" in line]
    direct = "direct I/O" if second.chain.stats().tiers["nvme"].gauges["direct_io"] else "no direct I/O"
    namespace = second.tiers[0].namespace
    expected = (
        "kvtier: 512B a token | 8KiB a chunk of 16 tokens | pinned: 64KiB, 128 tokens | "
        f"nvme: 64MiB, 131,072 tokens, {direct}"
    )
    assert started == [
        f"{expected}, 0 chunks found | namespace {namespace}",
        f"{expected}, 4 chunks found | namespace {namespace}",
    ]
    assert len(namespace) == 12


def test_what_was_saved_is_said_once_and_at_the_latest_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")
    one = side(tmp_path / "nvme")
    assert one.placement.lookup("r", KEYS[0]).name == "MISS"
    caplog.clear()
    one._saved.say()
    assert caplog.messages == []
    one.placement.prepare_store("r", KEYS[:1])
    one.placement.complete_store(KEYS[:1], success=True)
    one.placement.lookup("s", KEYS[0])
    one.placement.prepare_load("s", KEYS[:1])
    one.placement.complete_load("s", KEYS[:1])
    one.close()
    (line,) = [line for line in caplog.messages if "tokens" in line]
    assert line.startswith("kvtier: 16 tokens not computed again (pinned 16); ")


def test_it_is_said_every_minute_without_a_step_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert log.LINE_EVERY_S == 60
    monkeypatch.setattr(log, "LINE_EVERY_S", 0.01)
    caplog.set_level(logging.INFO, "server")
    one = side(tmp_path / "nvme")
    one.placement.prepare_store("r", KEYS)
    one.placement.complete_store(KEYS, success=True)
    while not any("stored in pinned" in line for line in caplog.messages):
        pass
    one.close()


def test_the_labels_are_those_of_the_facts(tmp_path: Path) -> None:
    one = side(tmp_path / "nvme")
    one.close()
    assert [tuple(facts.labels()) for facts in one.tiers] == [LABELS, LABELS]
    assert [facts.labels()["tier"] for facts in one.tiers] == ["pinned", "nvme"]


def test_lines_go_where_the_servers_go() -> None:
    assert log.server_logger().name.startswith("vllm.")
