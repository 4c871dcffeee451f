"""The device's errors, at each call"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from faults import FailingFiles, fault
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.errors import TierError
from kvtier.tiers.testing import aligned_buffers

REFUSALS = [errno.EIO, errno.ENODEV, errno.ENXIO, errno.EROFS, errno.ETIMEDOUT, errno.EFBIG, errno.EDQUOT]
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO]
OLD, NEW = keys_of(0, 40), keys_of(1000, 40)


@fault(
    "a write is refused (EIO, ENODEV, ENXIO, EROFS, ETIMEDOUT, EFBIG, EDQUOT)",
    sees="the store's keys fail, nothing is raised",
    loses="the chunks of that store",
    heals="by itself, once writes work",
)
@pytest.mark.parametrize("code", REFUSALS)
async def test_a_write_is_refused(tmp_path: Path, code: int) -> None:
    files = FailingFiles()
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, OLD)
        files.call, files.code = "pwritev", code
        assert not (await tier.store(NEW, filled(NEW))).succeeded
        files.call = ""
        assert await right(tier, OLD) == OLD
        await stored(tier, NEW)
        assert await right(tier, NEW) == NEW
    finally:
        await tier.close()


@fault(
    "no room is to be had for a segment (ENOSPC, EDQUOT, EFBIG, EIO)",
    sees="the store's keys fail, nothing is raised",
    loses="the chunks of that store",
    heals="by itself, once there is room",
)
@pytest.mark.parametrize("code", FULL)
async def test_no_room_for_a_segment(tmp_path: Path, code: int) -> None:
    files = FailingFiles()
    tier = await opened(tmp_path / "store", files=files, capacity_bytes=64 * MIB)
    try:
        await stored(tier, OLD)
        files.call, files.code = "allocate", code
        for first in range(2000, 2400, 40):  # until the open segment is full
            await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
        files.call = ""
        await stored(tier, NEW)
        assert await right(tier, NEW) == NEW
    finally:
        await tier.close()


@fault(
    "every read is refused (EIO)",
    sees="the load's keys fail, nothing is raised; the breaker opens",
    loses="nothing: where no read at all succeeds, it is the drive and not the chunks",
    heals="by itself, once reads work",
)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.ETIMEDOUT])
async def test_every_read_is_refused(tmp_path: Path, code: int) -> None:
    files = FailingFiles()
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, OLD)
        files.call, files.code = "preadv", code
        outcome = await tier.load(OLD, aligned_buffers(len(OLD), CHUNK_BYTES))
        assert set(outcome.failed) == set(OLD)
        files.call = ""
        assert await right(tier, OLD) == OLD
    finally:
        await tier.close()


@fault(
    "a sync is refused (EIO)",
    sees="`flush` raises; stores and loads go on",
    loses="nothing while the power stays; what was not synced may go with it",
    heals="the next flush that succeeds covers what comes after",
)
async def test_a_sync_is_refused(tmp_path: Path) -> None:
    files = FailingFiles()
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, OLD)
        files.call = "sync_data"
        with pytest.raises(TierError, match="may not be durable"):
            await tier.flush()
        assert await right(tier, OLD) == OLD
        files.call = ""
        await stored(tier, NEW)
        assert await right(tier, OLD + NEW) == OLD + NEW
    finally:
        await tier.close()


@fault(
    "a segment's file cannot be opened (EMFILE, ENFILE, ENOMEM)",
    sees="the load's keys fail",
    loses="nothing that is stored",
    heals="by itself, once there are descriptors",
)
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_a_segment_cannot_be_opened(tmp_path: Path, code: int) -> None:
    path, files = tmp_path / "store", FailingFiles()
    tier = await opened(path, capacity_bytes=8 * MIB)
    await stored(tier, keys_of(0, 200))
    await tier.close()
    tier = await opened(path, capacity_bytes=8 * MIB, files=files)
    try:
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)  # one segment is open from here on
        files.call, files.code = "open_data", code
        await tier.load(keys_of(0, 200), aligned_buffers(200, CHUNK_BYTES))
        files.call = ""
        assert await right(tier, keys_of(0, 200)) == keys_of(0, 200)
    finally:
        await tier.close()
