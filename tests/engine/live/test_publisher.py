"""Boards of real engines, as a reader finds them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_rig import CHUNK_BYTES, EngineRig, config

from kvtier.engine.chain import ChainStats
from kvtier.engine.live import publisher, reader
from kvtier.engine.live.board import Board, Facts
from kvtier.engine.live.home import home_of
from kvtier.tiers.base import TierStats

FACTS = Facts("library", "m", "0e29", 4096, None, {"nvme": ["/a"]}, {})
STATS = ChainStats({"pinned": TierStats(1, 2, 3)}, {}, 0)
WAIT_S = 20.0


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(publisher, "SHARED_MEMORY", folder)
    monkeypatch.delenv("KVTIER_LIVE")
    yield folder
    assert not home_of(os.getuid(), folder).exists(), "nothing is left"


class Written:
    """Waits until engines have written their boards so often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._semaphore = threading.Semaphore(0)
        real = publisher.Publisher.look

        def look(one: publisher.Publisher) -> bool:
            went_on = real(one)
            self._semaphore.release()
            return went_on

        monkeypatch.setattr(publisher.Publisher, "look", look)
        monkeypatch.setattr(publisher, "INTERVAL_S", 0.001)

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert self._semaphore.acquire(timeout=WAIT_S)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def boards(path: Path | None, shared_memory: Path) -> list[Board]:
    return reader.boards_of(path, shared_memory)


def test_an_engine_tells_its_numbers_until_it_is_closed(
    tmp_path: Path, shared_memory: Path, written: Written
) -> None:
    store = tmp_path / "store"
    rig = EngineRig(config(store), {"model": "org/model"})
    written.wait()
    rig.store([b"a", b"b"])
    rig.engine.flush(10)
    while written._semaphore.acquire(blocking=False):
        pass
    written.wait(2)  # the first may have read the numbers before
    (board,) = boards(store, shared_memory)
    assert board.stats["tiers"]["nvme"]["counters"]["stored_chunks"] == 2
    assert (board.pid, board.facts.kind, board.facts.model) == (os.getpid(), "library", "org/model")
    assert board.facts.chunk_bytes == CHUNK_BYTES
    assert board.facts.caps["nvme"]["bound_by"]
    assert board.history
    rig.engine.close()
    assert boards(None, shared_memory) == []


def test_a_store_is_found_by_whatever_path_leads_to_it_and_another_is_not(
    tmp_path: Path, shared_memory: Path, written: Written
) -> None:
    rigs = [EngineRig(config(tmp_path / name)) for name in ("one", "two")]
    (tmp_path / "link").symlink_to(tmp_path / "two")
    while len(boards(None, shared_memory)) < 2:
        written.wait()
    (by_link,), (by_path,) = (boards(tmp_path / name, shared_memory) for name in ("link", "two"))
    assert by_link.facts == by_path.facts
    assert by_link.started_unix_s == by_path.started_unix_s
    assert boards(tmp_path / "three", shared_memory) == []
    for rig in rigs:
        rig.engine.close()


def test_the_environment_turns_it_off(
    tmp_path: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVTIER_LIVE", "0")
    looks: list[object] = []
    monkeypatch.setattr(publisher.Publisher, "look", looks.append)
    rig = EngineRig(config(tmp_path / "store"))
    rig.engine.close()
    assert looks == []


async def test_numbers_that_hang_delay_no_end(shared_memory: Path) -> None:
    asked, lets_go = threading.Event(), threading.Event()

    def stats() -> ChainStats:
        asked.set()
        lets_go.wait(WAIT_S)
        return STATS

    running = asyncio.create_task(publisher.Publisher(FACTS, stats).run())
    assert await asyncio.to_thread(asked.wait, WAIT_S)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    lets_go.set()


async def test_a_write_that_comes_after_the_end_leaves_nothing(shared_memory: Path) -> None:
    one = publisher.Publisher(FACTS, lambda: STATS)
    assert one.look()
    one.leave()
    assert not one.look()


def test_where_there_can_be_no_board_one_line_says_so(
    shared_memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher, "SHARED_MEMORY", shared_memory / "absent")
    with caplog.at_level(logging.WARNING):
        assert not publisher.Publisher(FACTS, lambda: STATS).look()
    assert len(caplog.records) == 1


def test_a_board_that_was_not_written_for_long_is_stale() -> None:
    board = Board(1, 0.0, 100.0, FACTS, STATS.as_dict())
    assert not reader.is_stale(board, 100.0 + reader.STALE_S)
    assert reader.is_stale(board, 101.0 + reader.STALE_S)
