"""LMDB's reader slots, one for each read at a time over all processes: what happens when none is left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lmdb
import pytest
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored
from reader_slots import all_held, few_slots
from store_process import StoreProcess

from kvtier.tiers.base import Failure
from kvtier.tiers.breaker import BAD_CALLS_MAX, Breaker, BreakerState
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.index.environment import SPARE_READS, Index
from kvtier.tiers.nvme.index.errors import IndexDamaged, IndexStarved
from kvtier.tiers.testing import aligned_buffers

SLOTS = 24  # of the store, for all processes
OLD, NEW = keys_of(0, 8), keys_of(100, 4)


@pytest.fixture(autouse=True)
def _few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    few_slots(monkeypatch, SLOTS)


async def test_without_a_slot_lookups_miss_and_stores_and_loads_say_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(tmp_path / "store")
    breaker = Breaker(tier, slow_s=60.0)
    await stored(tier, OLD)
    with all_held(tier._index) as count:
        assert SPARE_READS <= count <= SLOTS
        for _ in range(2 * BAD_CALLS_MAX):
            assert list(breaker.lookup(OLD)) == [False] * len(OLD)
            outcome = await breaker.load(OLD, aligned_buffers(len(OLD), CHUNK_BYTES))
            assert outcome.failed == dict.fromkeys(OLD, Failure.NO_RESOURCES)
            outcome = await breaker.store(NEW, filled(NEW))
            assert outcome.failed == dict.fromkeys(NEW, Failure.NO_RESOURCES)
        assert breaker.state is BreakerState.CLOSED
        assert breaker.stats().counters["breaker_openings"] == 0
        with pytest.raises(TierError, match="reader slots"):
            await tier.flush()
    assert not tier._index.damaged
    assert sum("reader slots" in message for message in caplog.messages) <= 2, "once a period"
    assert list(breaker.lookup(OLD)) == [True] * len(OLD)
    assert await right(tier, OLD) == OLD
    await stored(tier, NEW)
    await tier.flush()
    assert tier.stats().counters["corrupt_chunks"] == 0
    await tier.close()


async def test_slots_of_the_dead_are_cleared_before_anybody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    with StoreProcess(path) as other:
        assert other.ask("read") == "reading"
        other.kill()
    with contextlib.ExitStack() as reads:
        for _ in range(SLOTS - 2):  # more than are ours, and more than the dead one has left
            reads.enter_context(tier._index.read())
        assert list(tier.lookup(OLD)) == [True] * len(OLD)
    await tier.close()


async def test_a_second_server_opens_with_the_slots_that_are_left(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    with StoreProcess(path) as second:
        assert second.greeting == "open"
        assert second.ask("look 0 8") == "8"
        assert second.ask("store 100 4") == "4"
        assert second.ask("close") == "closed"
    await tier.close()


async def test_a_server_opens_when_the_dead_have_left_no_slot(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with StoreProcess(path) as lasting:
        assert lasting.ask("store 0 8") == "8"
        for _ in range(3):
            with StoreProcess(path) as dead:
                assert dead.ask("read") == "reading"
                dead.kill()
        tier = await opened(path)
        assert await right(tier, OLD) == OLD
        await tier.close()


async def test_a_server_that_finds_every_slot_taken_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    with all_held(tier._index), StoreProcess(path) as second:
        assert second.greeting.startswith("TierUnavailable")
        assert "reader slots" in second.greeting
    assert await right(tier, OLD) == OLD
    await tier.close()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (lmdb.ReadersFullError("x"), IndexStarved),
        (lmdb.MemoryError("x"), IndexStarved),
        (lmdb.TlsFullError("x"), IndexStarved),
        (lmdb.CorruptedError("x"), IndexDamaged),
        (lmdb.PageNotFoundError("x"), IndexDamaged),
    ],
)
def test_what_is_lacking_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error, ours: type[TierError]
) -> None:
    class Refusing:
        def begin(self, **_: object) -> None:
            raise error

        def reader_check(self) -> int:
            return 0

        def info(self) -> dict[str, int]:
            return {"max_readers": SLOTS}

    index = Index.open(tmp_path / "index", MIB)
    try:
        monkeypatch.setattr(index, "_env", Refusing())
        with pytest.raises(ours):
            index.has(b"n" * 32, [b"k"])
        assert index.damaged is (ours is IndexDamaged)
    finally:
        index.close()
