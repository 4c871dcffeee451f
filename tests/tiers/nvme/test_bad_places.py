"""Bad places of a drive that works otherwise, and an index that cannot say."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer, ChunkKey, Failure
from kvtier.tiers.errors import TierError
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
