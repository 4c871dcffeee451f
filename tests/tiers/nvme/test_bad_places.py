"""Bad places and bad files of a drive that works otherwise, and an index that cannot say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import run
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer, ChunkKey, Failure
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.readers import Readers
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers


class BadPlaces(Files):
    """The real files; reads that touch one of these offsets fail."""

    offsets: frozenset[int] = frozenset()

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        end = offset + sum(map(len, buffers))
        if any(offset <= bad < end for bad in self.offsets):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().preadv(fd, buffers, offset)


def offset_of(tier: NvmeTier, key: ChunkKey) -> int:
    _, (extent,) = tier._index.find(tier._view.digest, [key])
    assert extent is not None
    return extent.block * BLOCK_BYTES


async def test_a_chunk_on_a_bad_place_is_dropped_and_stored_anew(tmp_path: Path) -> None:
    files, keys = BadPlaces(), keys_of(0, 8)
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, keys)
        files.offsets = frozenset([offset_of(tier, keys[3])])
        outcome = await tier.load(keys, aligned_buffers(len(keys), CHUNK_BYTES))
        assert outcome.failed == {keys[3]: Failure.IO_ERROR}
        assert list(tier.lookup(keys)) == [key != keys[3] for key in keys]
        assert tier.stats().counters["corrupt_chunks"] == 0
        await stored(tier, [keys[3]])
        assert await right(tier, keys) == keys
    finally:
        await tier.close()


async def test_a_drive_that_refuses_everything_keeps_its_chunks(tmp_path: Path) -> None:
    files, keys = BadPlaces(), keys_of(0, 8)
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, keys)
        files.offsets = frozenset(offset_of(tier, key) for key in keys)
        outcome = await tier.load(keys, aligned_buffers(len(keys), CHUNK_BYTES))
        assert outcome.succeeded == ()
        files.offsets = frozenset()
        assert await right(tier, keys) == keys
    finally:
        await tier.close()


async def test_an_index_that_cannot_say_fails_the_load_and_holds_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_say(*_: object) -> bool:
        raise TierError("nvme", "no reader slot is left")

    tier, keys = await opened(tmp_path / "store"), keys_of(0, 4)
    try:
        await stored(tier, keys)
        monkeypatch.setattr(Readers, "_is_current", cannot_say)
        outcome = await tier.load(keys, aligned_buffers(len(keys), CHUNK_BYTES))
        assert set(outcome.failed.values()) == {Failure.IO_ERROR}
        monkeypatch.undo()
        assert [held.users for held in tier._loader._readers._held.values()] == [0]
        assert await right(tier, keys) == keys
    finally:
        await tier.close()


class OneBadFile(Files):
    """The real files; the one of that name cannot be opened, as where its inode is damaged."""

    bad = ""

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        if path.name == self.bad:
            raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), str(path))
        return super().open_data(path, create=create, write=write)


async def lapped(tier: NvmeTier, start: int) -> None:
    """Store more than the cap has room for; every chunk must be taken."""
    for keys in (keys_of(start + step, 40) for step in range(0, 480, 40)):
        outcome = await tier.store(keys, filled(keys))
        assert outcome.failed == {}


def oldest(tier: NvmeTier, state: SegmentState) -> str:
    with tier._index.read() as txn:
        number = next(number for number, _ in txn.by_age(state) if number not in tier._log.room.own)
    return tier._store.directory.segments.path(number).name


CAPACITY_BYTES = 6 * MIB  # less than a lap stores
STATES = (SegmentState.FREE, SegmentState.OPEN, SegmentState.SEALED)


async def left_by_another(path: Path, state: SegmentState) -> str:
    """A full store that was closed; returns the file of a segment in that state."""
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await lapped(tier, 0)
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    name = oldest(tier, state)
    await tier.close()
    return name


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_one_file_that_cannot_be_opened_stops_no_store(tmp_path: Path, state: SegmentState) -> None:
    files, path = OneBadFile(), tmp_path / "store"
    name = await left_by_another(path, state)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, files=files)
    try:
        files.bad = name
        await lapped(tier, 10_000)
        assert await right(tier, keys_of(10_440, 40)) == keys_of(10_440, 40)
        assert tier.stats().used_bytes <= CAPACITY_BYTES
    finally:
        await tier.close()


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    run("chattr", "+i", path)
    try:
        yield
    finally:
        run("chattr", "-i", path)


@pytest.mark.root
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_one_file_that_may_not_be_changed_stops_no_store(
    tmp_path: Path, state: SegmentState, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    name = await left_by_another(path, state)
    with immutable(path / "segments" / name):
        tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
        try:
            await lapped(tier, 10_000)
        finally:
            await tier.close()
    assert [record for record in caplog.records if name in record.getMessage()]


async def test_where_no_segment_can_be_opened_the_reason_is_told(tmp_path: Path) -> None:
    class NoSegment(Files):
        is_bad = False

        def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
            if self.is_bad and not create:
                raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), str(path))
            return super().open_data(path, create=create, write=write)

    files, path = NoSegment(), tmp_path / "store"
    await left_by_another(path, SegmentState.SEALED)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, files=files)
    try:
        files.is_bad = True
        failures = set[Failure]()
        for keys in (keys_of(20_000 + step, 40) for step in range(0, 480, 40)):
            failures |= set((await tier.store(keys, filled(keys))).failed.values())
        assert failures == {Failure.IO_ERROR}
    finally:
        files.is_bad = False
        await tier.close()
