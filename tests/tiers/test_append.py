"""Appending while syncs, seals, writes and the index fail or take their time."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

from faulty_files import AnotherBoot, UnsyncedFiles
from nvme_rig import keys_of, opened, right, stored

SETTLE_ROUNDS = 200


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
    upkeep = asyncio.create_task(tier._appender.sync())
    try:
        await asyncio.to_thread(files.began.wait)
        flush = asyncio.create_task(tier.flush())
        for _ in range(SETTLE_ROUNDS):
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
