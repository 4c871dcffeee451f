"""Segments that are ready: what a store does without, and what it waits for."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from faulty_files import RefusingFiles
from nvme_rig import CHUNK_BYTES, KIB, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure
from kvtier.tiers.nvme.index.environment import IndexBusy, IndexFull
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log import ahead as module
from kvtier.tiers.nvme.log import lifecycle
from kvtier.tiers.nvme.log.room import Room
from kvtier.tiers.nvme.tier import NvmeTier

T = TypeVar("T")

SEGMENT_CHUNKS = 63  # of a store of 64 MiB
LOOP_ROUNDS = 200
GIVE_UP_S = 60.0  # for a wait that is over in a moment


class HeldSyncs(Files):
    """Syncs wait until they may go on; the threads that ask for them are noted."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.threads: list[str] = []

    def sync_data(self, fd: int) -> None:
        self.threads.append(threading.current_thread().name)
        self.may_go_on.wait()
        super().sync_data(fd)


async def ready(tier: NvmeTier) -> int:
    """Let the tier make ready what it keeps ready; returns how many segments a store may take."""
    await tier._upkeep.once()
    await tier._ahead.finished()
    return len(tier._ahead._ready) - tier._ahead.kept


async def test_stores_go_on_over_several_rolls_while_no_sync_returns(tmp_path: Path) -> None:
    files = HeldSyncs()
    tier = await opened(tmp_path / "store", files=files)
    segments = await ready(tier)
    assert segments >= 4
    files.may_go_on.clear()
    files.threads.clear()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            for first in range(0, segments * SEGMENT_CHUNKS, SEGMENT_CHUNKS):
                await stored(tier, keys_of(first, SEGMENT_CHUNKS))
        late = keys_of(100_000, 2 * SEGMENT_CHUNKS)
        waiting = asyncio.create_task(tier.store(late, filled(late)))
        for _ in range(LOOP_ROUNDS):
            await asyncio.sleep(0)
        assert not waiting.done()
    finally:
        files.may_go_on.set()
    assert (await waiting).succeeded == tuple(late)
    assert not [name for name in files.threads if not name.startswith(("kvtier-head", "kvtier-sync"))]
    await tier.close()


async def test_a_store_that_finds_nothing_ready_is_shed_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, keys = HeldSyncs(), keys_of(0, 4)
    tier = await opened(tmp_path / "store", files=files)
    await ready(tier)
    await tier._ahead.close()
    monkeypatch.setattr(module, "ROOM_WAIT_S", 0.05)
    files.may_go_on.clear()
    try:
        assert (await tier.store(keys, filled(keys))).failed == dict.fromkeys(keys, Failure.DROPPED)
    finally:
        files.may_go_on.set()
    monkeypatch.undo()
    await stored(tier, keys)
    await tier.close()


@pytest.mark.parametrize("waiters", [1, 8])
async def test_a_cancelled_wait_loses_no_segment(tmp_path: Path, waiters: int) -> None:
    files = HeldSyncs()
    tier = await opened(tmp_path / "store", files=files)
    count = await ready(tier)
    await tier._ahead.close()
    files.may_go_on.clear()
    batches = [keys_of(100 * number, 4) for number in range(waiters)]
    waiting = [asyncio.create_task(tier.store(keys, filled(keys))) for keys in batches]
    for _ in range(LOOP_ROUNDS):
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    files.may_go_on.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await ready(tier) == count
    assert len(tier._log.room.own) == count + tier._ahead.kept
    await stored(tier, keys_of(5000, 4))
    await tier.close()


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (OSError(errno.EMFILE, "too many"), Failure.NO_RESOURCES),
        (OSError(errno.EIO, "bad"), Failure.IO_ERROR),
        (IndexFull("nvme", "full"), Failure.INDEX_FULL),
    ],
    ids=["descriptors", "drive", "index"],
)
async def test_who_waits_learns_at_once_and_by_name_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception, why: Failure
) -> None:
    tier, keys = await opened(tmp_path / "store"), keys_of(0, 4)
    await ready(tier)
    await tier._ahead.close()

    def refuse() -> None:
        raise refusal

    with monkeypatch.context() as patched:
        patched.setattr(tier._log, "claim", refuse)
        patched.setattr(module, "ROOM_WAIT_S", GIVE_UP_S)
        assert (await tier.store(keys, filled(keys))).failed == dict.fromkeys(keys, why)
    await stored(tier, keys)
    await tier.close()


async def test_a_header_that_cannot_be_synced_is_no_segment_to_write_to(tmp_path: Path) -> None:
    files, keys = RefusingFiles(), keys_of(0, 4)
    tier = await opened(tmp_path / "store", files=files)
    await ready(tier)
    await tier._ahead.close()
    files.syncs = errno.EIO
    assert (await tier.store(keys, filled(keys))).failed == dict.fromkeys(keys, Failure.IO_ERROR)
    assert tier.stats().counters["io_errors"] > 0
    files.syncs = 0
    await ready(tier)  # others were on their way while the drive refused
    await stored(tier, keys)
    await tier.close()


async def test_segments_that_can_neither_be_synced_nor_recorded_are_claimed_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RefusingFiles()
    tier = await opened(tmp_path / "store", files=files)
    await ready(tier)
    await tier._ahead.close()
    await tier._keeper.stop()
    files.syncs = errno.EIO
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "_leave_to_reclaim", held_by_another)
        assert await tier._ahead.prepare(3) == 3
        await tier._ahead.finished()
    assert tier._log.room.own == set()
    files.syncs = 0
    await ready(tier)
    await stored(tier, keys_of(0, 4))
    await tier.close()


def held_by_another(*_: object) -> bool:
    raise IndexBusy("nvme", "another process holds the index")


async def test_what_the_index_has_no_room_for_is_not_written_and_evicts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing that could leave: then the store is refused before a byte is written."""

    class Counting(Files):
        written = 0

        def pwritev(self, fd: int, buffers: object, offset: int) -> int:
            self.written += 1
            return super().pwritev(fd, buffers, offset)  # type: ignore[arg-type]

    files, keys = Counting(), keys_of(0, 8)
    tier = await opened(tmp_path / "store", files=files)
    await stored(tier, keys)
    await ready(tier)
    written = files.written
    with monkeypatch.context() as patched:
        for name in ("index_is_tight", "index_is_nearly_tight"):
            patched.setattr(Room, name, lambda _: True)
        more = keys_of(100, 8)
        assert (await tier.store(more, filled(more))).failed == dict.fromkeys(more, Failure.INDEX_FULL)
    assert files.written == written
    assert tier.stats().counters["evicted_chunks"] == 0
    await stored(tier, more)
    await tier.close()


async def test_a_store_waits_while_chunks_leave_a_tight_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=8 * MIB)
    for first in range(0, 200, 20):
        await stored(tier, keys_of(first, 20))
    tight = threading.Event()
    tight.set()
    finish = tier._log.victims.finish

    def finished(victim: object) -> int:
        tight.clear()
        return finish(victim)  # type: ignore[arg-type]

    monkeypatch.setattr(tier._log.victims, "finish", finished)
    for name in ("index_is_tight", "index_is_nearly_tight"):
        monkeypatch.setattr(Room, name, lambda _: tight.is_set())
    await stored(tier, keys_of(1000, 4))
    assert not tight.is_set()
    await tier.close()


async def hot_set(tier: NvmeTier, rounds: int, between: Callable[[], object]) -> int:
    """Store cold chunks beside hot ones that are read in every round; returns how many of those are left."""
    hot = keys_of(1_000_000, 16)
    await stored(tier, hot)
    for number in range(rounds):
        await stored(tier, keys_of(100 * number, 32))
        await right(tier, hot)
        between()
    return sum(tier.lookup(hot))


@pytest.mark.slow
async def test_what_is_hot_survives_stores_at_full_speed(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=16 * MIB)
    assert await hot_set(tier, 100, lambda: None) == 16
    assert tier.stats().counters["evicted_chunks"] > 1000
    assert tier.stats().counters["carried_bytes"] > 0
    await tier.close()


@pytest.mark.parametrize("segments", [2, 3, 5])
async def test_a_store_of_few_segments_goes_on(tmp_path: Path, segments: int) -> None:
    """Nothing is kept ready there: each roll waits for the one that is reclaimed."""
    chunk_bytes = 512 * KIB
    tier = await opened(
        tmp_path / "store", capacity_bytes=(segments + 1) * 1100 * KIB + MIB // 2, chunk_bytes=chunk_bytes
    )
    for number in range(20):
        await stored(tier, keys_of(number, 1), chunk_bytes)
    assert tier.lookup(keys_of(19, 1)) == [True]
    await tier.close()


async def test_what_is_ready_is_free_again_after_a_close(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store")
    await stored(tier, keys_of(0, 1))
    await ready(tier)
    await tier.close()
    again = await opened(tmp_path / "store")
    await ready(again)
    with again._index.read() as txn:
        segments = txn.segments()
    assert sum(segment.end_block > 1 for segment in segments.values()) == 1
    assert await right(again, keys_of(0, 1)) == keys_of(0, 1)
    assert len(segments) * CHUNK_BYTES < 64 * MIB
    await again.close()
