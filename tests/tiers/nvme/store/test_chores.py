"""When a checkpoint is due, and what one that is made while the store is used is worth."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import damage
import pytest
from loop_rig import drive, needs, run
from nvme_rig import KIB, MIB, at_rest, filled, keys_of, opened, right, stored

from kvtier.tiers.base import RemoveReason
from kvtier.tiers.nvme.index.environment import Index
from kvtier.tiers.nvme.index.ledger import Ledger
from kvtier.tiers.nvme.index.transaction import Transaction
from kvtier.tiers.nvme.store import checkpoint, chores
from kvtier.tiers.nvme.store.checkpoint import checkpoint_footer, write_checkpoint


@pytest.mark.parametrize(
    ("name", "value"), [("CHECKPOINT_CHUNKS", 100), ("CHECKPOINT_PERIOD_S", 0.0)], ids=["chunks", "time"]
)
async def test_a_checkpoint_is_made_once_enough_was_stored_or_time_has_gone_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 8))
    await tier._keeper.stop()
    work = tier._keeper._chores
    work.round()
    assert not (path / "checkpoint").exists(), "too little, too soon"
    monkeypatch.setattr(chores, name, value)
    for first in range(100, 600, 50):
        await stored(tier, keys_of(first, 50))
    await tier._upkeep.once()
    await tier._ahead.finished()  # no segment is opened any more
    work.round()
    made = (path / "checkpoint").stat().st_ino
    work.round()
    assert (path / "checkpoint").stat().st_ino == made, "nothing came since"
    await tier.close()


@pytest.mark.parametrize("year", [2010, 2090])
async def test_a_clock_that_was_wrong_puts_no_checkpoint_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """One that was made while the clock was ahead is not the newest for years."""
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await tier._keeper.stop()
    work, wrong_s = tier._keeper._chores, (year - 1970) * 365 * 86400
    with monkeypatch.context() as patched:
        patched.setattr("kvtier.tiers.nvme.store.checkpoint.now_s", lambda: wrong_s)
        assert write_checkpoint(tier._store.directory, tier._index)
    work.round()  # and has seen it
    made = (path / "checkpoint").stat().st_ino
    for first in range(100, 600, 50):
        await stored(tier, keys_of(first, 50))
    await tier._upkeep.once()
    await tier._ahead.finished()
    work.round()
    assert (path / "checkpoint").stat().st_ino == made, "too soon"
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 2 * chores.CHECKPOINT_PERIOD_S)
    work.round()
    assert (path / "checkpoint").stat().st_ino != made
    await tier.close()


async def test_a_store_in_which_nothing_is_stored_gets_a_checkpoint_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how long the store was in use, which the life of the drive is reckoned by."""
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await tier._keeper.stop()
    await at_rest(tier)  # no segment is opened any more
    work, opened_s = tier._keeper._chores, time.monotonic()
    write_checkpoint(tier._store.directory, tier._index)
    work.round()  # and has seen it
    made = (path / "checkpoint").stat().st_ino

    def round_after(seconds: float) -> int:
        with monkeypatch.context() as patched:  # for as long as the loop does not look
            patched.setattr(time, "monotonic", lambda: opened_s + seconds)
            work.round()
        return (path / "checkpoint").stat().st_ino

    assert round_after(chores.CHECKPOINT_PERIOD_MAX_S / 2) == made
    assert round_after(2 * chores.CHECKPOINT_PERIOD_MAX_S) != made
    await tier.close()


async def test_a_checkpoint_that_is_written_in_part_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last block does not fit within the drive."""
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 200))
    directory, index = tier._store.directory, tier._index
    before = write_checkpoint(directory, index)
    assert before is not None

    def written_in_part(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:100], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_whole", written_in_part)
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(directory, index)
    assert checkpoint_footer(path / "checkpoint", directory.facts.store) == before
    assert [file.name for file in path.glob("checkpoint*")] == ["checkpoint"]
    await tier.close()


async def test_a_checkpoint_that_is_older_than_a_removal_does_not_bring_a_chunk_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 16))
    await tier.remove(keys_of(0, 4), RemoveReason.REQUESTED)
    write_checkpoint(tier._store.directory, tier._index)
    await tier.remove(keys_of(4, 4), RemoveReason.REQUESTED)
    await stored(tier, keys_of(6, 1))
    await tier.flush()
    left = path.with_name("left")
    damage.copy_of_whole_files(path, left)
    await tier.close()
    after = await opened(left, capacity_bytes=16 * MIB)
    assert await right(after, keys_of(0, 16)) == keys_of(6, 1) + keys_of(8, 8)
    await after.close()


async def test_a_removal_is_forgotten_once_no_segment_is_as_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each key that was ever removed would stay in the index, which is in memory."""
    tier = await opened(tmp_path / "store", capacity_bytes=8 * MIB)
    keys = keys_of(0, 40)
    await stored(tier, keys)
    await tier.remove(keys, RemoveReason.REQUESTED)
    await tier._keeper.stop()
    work = tier._keeper._chores
    monkeypatch.setattr(chores, "REMOVALS_PERIOD_S", 0.0)
    monkeypatch.setattr(chores, "REMOVALS_STEP", 7)

    def remembered() -> int:
        work._removals_due_s = 0.0
        work.round()
        monkeypatch.setattr(work, "_removals_due_s", float("inf"))
        while work.round():
            pass
        with tier._index.read() as txn:
            return sum(txn.removal(tier._view.scope(), key) is not None for key in keys)

    assert remembered() == len(keys), "the chunks are still in their segment"
    for first in range(1000, 5000, 40):  # some laps
        await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
    await tier._upkeep.once()
    assert remembered() == 0
    await tier.close()


def overwrite(txn: Transaction) -> None:
    """What a load of them all changes: every record."""
    ledger = Ledger(txn)
    for scope, key, extent in list(txn.extents()):
        ledger.touch(scope, key, extent, 1)
    ledger.close()


@pytest.mark.root
@pytest.mark.slow
async def test_a_checkpoint_that_hangs_on_a_frozen_drive_holds_no_page_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("fsfreeze")
    with drive("ext4", tmp_path, 128 * MIB) as made:
        tier = await opened(made.point / "store", capacity_bytes=16 * MIB, chunk_bytes=4 * KIB)
        await stored(tier, keys_of(0, 2000), 4 * KIB)
        index, copying, copy_to = tier._index, threading.Event(), Index.copy_to

        def frozen_copy_to(self: Index, fd: int) -> None:
            run("fsfreeze", "-f", made.point)
            copying.set()
            copy_to(self, fd)

        monkeypatch.setattr(Index, "copy_to", frozen_copy_to)
        try:
            checkpoint = asyncio.ensure_future(
                tier._lanes.upkeep(lambda: write_checkpoint(tier._store.directory, index))
            )
            await asyncio.to_thread(copying.wait)
            for _ in range(40):  # several times the map, where no page is used again
                await tier._lanes.index(lambda: index.write(overwrite))
            with index.read() as txn:
                assert index.file_bytes() < 4 * txn.tree_bytes()
            assert not checkpoint.done()
        finally:
            run("fsfreeze", "-u", made.point)
        assert await checkpoint
        footer = checkpoint_footer(made.point / "store" / "checkpoint", tier._store.directory.facts.store)
        assert footer is not None
        assert footer.chunks == 2000
        await stored(tier, keys_of(5000, 500), 4 * KIB)
        assert len(await right(tier, keys_of(5000, 500), 4 * KIB)) == 500
        monkeypatch.setattr(Index, "copy_to", copy_to)
        await tier.close()
