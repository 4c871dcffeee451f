"""Appending while syncs, seals, writes and the index fail or take their time."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import damage
import pytest
from faulty_files import AnotherBoot, RefusingFiles, UnsyncedFiles
from nvme_rig import CHUNK_BYTES, MIB, at_rest, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer, Failure, RemoveReason
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.format.codec import SegmentName
from kvtier.tiers.nvme.format.open_segment import OpenSegment
from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.chunks import Removals
from kvtier.tiers.nvme.tier import NvmeTier

LOOP_ROUNDS = 200
GIVE_UP_S = 60.0  # for a wait that is over in a moment


class HeldSyncs(UnsyncedFiles):
    """Syncs that say when they begin and wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def sync_data(self, fd: int) -> None:
        self.began.set()
        self.may_go_on.wait()
        super().sync_data(fd)


async def test_a_flush_waits_for_the_sync_that_covers_what_was_stored(tmp_path: Path) -> None:
    files, keys = HeldSyncs(), keys_of(0, 8)
    tier = await opened(tmp_path / "store", files=files)
    await stored(tier, keys)
    await tier.flush()
    files.began.clear()
    files.may_go_on.clear()
    await stored(tier, keys_of(10, 8))
    upkeep = asyncio.create_task(tier._durability.sync())
    try:
        await asyncio.to_thread(files.began.wait)
        flush = asyncio.create_task(tier.flush())
        for _ in range(LOOP_ROUNDS):
            await asyncio.sleep(0)
        assert not flush.done()
    finally:
        files.may_go_on.set()
    await asyncio.gather(upkeep, flush)
    files.lose_power(tmp_path / "store", tmp_path / "after", random.Random(1))
    await tier.close()
    after = await opened(tmp_path / "after", files=AnotherBoot())
    assert len(await right(after, keys + keys_of(10, 8))) == 16
    await after.close()


async def without_sync() -> None:
    """A process that was killed before its upkeep, or whose upkeep comes later."""


@pytest.mark.parametrize("lives", [True, False])
async def test_a_flush_covers_what_another_had_stored_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    files, path, keys = UnsyncedFiles(), tmp_path / "store", keys_of(0, 16)
    other = await opened(path, files=files)
    tier = await opened(path, files=files)
    with monkeypatch.context() as patched:
        patched.setattr(other._durability, "_sync_unsynced", without_sync)
        await stored(other, keys)
        if not lives:
            await other.close()
        await stored(tier, keys)
        await tier.flush()
        files.lose_power(path, tmp_path / "after", random.Random(1))
    await tier.close()
    await other.close()
    after = await opened(tmp_path / "after", files=AnotherBoot())
    assert await right(after, keys) == keys
    await after.close()


async def with_nothing_ready(tier: NvmeTier) -> None:
    """Until the next store looks for a segment."""
    await tier._upkeep.once()
    await tier._ahead.close()


def state_of(tier: NvmeTier, number: int) -> SegmentState | None:
    with tier._index.read() as txn:
        segment = txn.segment(number)
    return segment.state if segment is not None else None


async def test_a_full_segment_whose_trailer_is_refused_is_not_taken_over_again(tmp_path: Path) -> None:
    files = RefusingFiles()
    tier = await opened(tmp_path / "store", files=files, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 4))
    full = name_of_tail(tier)
    files.syncs = errno.EIO
    for first in range(100, 400, 50):
        await tier.store(keys_of(first, 50), filled(keys_of(first, 50)))
    await tier._durability.round()
    assert state_of(tier, full.segment) is SegmentState.SEALED
    files.syncs = 0
    await at_rest(tier)  # so that no refusal is under way
    await stored(tier, keys_of(1000, 50))
    assert await right(tier, keys_of(0, 4)) == keys_of(0, 4)
    with pytest.raises(TierError, match="may not be durable"):
        await tier.flush()
    await tier.close()


async def test_a_store_returns_though_every_segment_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=16 * MIB)
    await with_nothing_ready(tier)
    claim = tier._log.claim

    def full() -> OpenSegment | None:
        segment = claim()
        if segment is not None:
            segment.next_block = segment.file.size_blocks
        return segment

    monkeypatch.setattr(tier._log, "claim", full)
    keys = keys_of(0, 4)
    async with asyncio.timeout(GIVE_UP_S):
        outcome = await tier.store(keys, filled(keys))
    assert outcome.failed == dict.fromkeys(keys, Failure.NO_SPACE)
    monkeypatch.undo()
    await stored(tier, keys)
    await tier.close()


@pytest.mark.parametrize("refused", ["write", "claim"])
async def test_a_flush_raises_what_removals_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    files, path = RefusingFiles(), tmp_path / "store"
    tier = await opened(path, files=files)
    await stored(tier, keys_of(0, 8))
    await tier.flush()
    if refused == "claim":
        await tier.close()
        tier = await opened(path, files=files)
        await with_nothing_ready(tier)
        monkeypatch.setattr(tier._log, "claim", lambda: None)
        monkeypatch.setattr(tier._carrier, "reclaim", reclaim_nothing)
    else:
        files.writes = errno.EIO
    await tier.remove(keys_of(0, 8), RemoveReason.REQUESTED)
    files.writes = 0
    with pytest.raises(TierError, match="may not be durable"):
        await tier.flush()
    await tier.flush()
    await tier.close()


async def reclaim_nothing(count: int, *, carry: bool) -> bool:
    return False


async def write_nothing(removals: Sequence[Removals], *, wait: bool) -> Sequence[Removals]:
    assert not wait
    return removals


@pytest.mark.parametrize("placed", [True, False])
async def test_a_removal_outlives_the_segment_that_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: bool
) -> None:
    """Its segment is older than the chunks', so it is reclaimed first, with or without a place for it."""
    path, keys = tmp_path / "store", keys_of(10, 4)
    first = await opened(path, capacity_bytes=8 * MIB)
    await stored(first, keys_of(0, 1))
    tier = await opened(path, capacity_bytes=8 * MIB)
    await stored(tier, keys_of(5000, 100))  # some segments, so that the two are not reclaimed together
    await stored(tier, keys)
    await first.remove(keys, RemoveReason.REQUESTED)
    old, young = name_of_tail(first), name_of_tail(tier)
    await first.close()
    assert opened_of(tier, old) < opened_of(tier, young)
    if not placed:
        monkeypatch.setattr(tier._carrier._apart, "write_removals", write_nothing)
    number = 1000
    while opened_of(tier, old):
        await stored(tier, keys_of(number, 4))
        number += 4
    assert opened_of(tier, young)
    await tier.close()
    damage.lose_index(path)
    after = await opened(path, capacity_bytes=8 * MIB)
    assert await right(after, keys) == []
    assert len(await right(after, keys_of(number - 4, 4))) == 4
    await after.close()


def name_of_tail(tier: NvmeTier) -> SegmentName:
    current = tier._appender._tail._current
    assert current is not None
    return current.name


def opened_of(tier: NvmeTier, name: SegmentName) -> int:
    """When this life of the segment began; 0 once it is over."""
    with tier._index.read() as txn:
        segment = txn.segment(name.segment)
    lives = segment is not None and segment.generation == name.generation and segment.state.name != "FREE"
    return segment.opened if segment is not None and lives else 0


class RefusingData(RefusingFiles):
    """The real files; where writes are refused, those of headers and tables are not."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if sum(map(len, buffers)) >= CHUNK_BYTES:
            return super().pwritev(fd, buffers, offset)
        return os.pwritev(fd, buffers, offset)

    def allocate(self, fd: int, size_bytes: int) -> None:
        Files.allocate(self, fd, size_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_drive_that_refuses_chunks_keeps_those_it_has(tmp_path: Path, code: int) -> None:
    files = RefusingData()
    tier = await opened(tmp_path / "store", capacity_bytes=16 * MIB, files=files)
    for first in range(0, 1000, 20):
        await stored(tier, keys_of(first, 20))
    await tier._upkeep.once()  # what was to leave for these has left
    before = tier.stats().chunks
    files.writes = code
    for first in range(5000, 9000, 80):
        batches = [keys_of(first + i, 20) for i in range(0, 80, 20)]
        await asyncio.gather(*(tier.store(keys, filled(keys)) for keys in batches))
    assert tier.stats().chunks > before * 0.8
    files.writes = 0
    await at_rest(tier)
    await stored(tier, keys_of(20_000, 50))  # more than one segment takes
    await stored(tier, keys_of(10_000, 4))
    assert len(await right(tier, keys_of(10_000, 4) + keys_of(20_000, 50))) == 54
    await tier.close()
