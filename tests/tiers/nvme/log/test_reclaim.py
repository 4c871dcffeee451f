"""What a reclaim carries, and what has to be durable before the old place is given up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faulty_files import WatchedFiles
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.io.files import Files


class CountingFiles(Files):
    """The real files, and what was written to them."""

    def __init__(self) -> None:
        self.written_bytes = 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        written = super().pwritev(fd, buffers, offset)
        self.written_bytes += written
        return written


async def test_chunks_of_a_past_epoch_are_not_carried(tmp_path: Path) -> None:
    """However often they were read: nobody finds them any more."""
    files, read = CountingFiles(), keys_of(0, 640)
    tier = await opened(tmp_path / "store", files=files, capacity_bytes=16 * MIB, write_amplification=3.0)
    for first in range(0, len(read), 40):
        await stored(tier, read[first : first + 40])
    assert await right(tier, read) == read
    await tier._upkeep.once()
    await tier.invalidate()
    files.written_bytes = stored_bytes = 0
    for first in range(5000, 6000, 40):
        outcome = await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
        stored_bytes += len(outcome.succeeded) * CHUNK_BYTES
    await tier._upkeep.once()
    counters = tier.stats().counters
    assert counters["evicted_chunks"] > 0
    assert counters["carried_chunks"] == 0
    assert files.written_bytes < 1.2 * stored_bytes
    await tier.close()


async def test_what_was_carried_is_durable_though_its_reclaim_ended_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on with the segment finds nothing left to carry, and may not give it up yet."""
    files, hot = WatchedFiles(), keys_of(0, 8)
    tier = await opened(tmp_path / "store", files=files, write_amplification=2.0)
    await stored(tier, hot)
    for first in range(100, 1600, 50):  # some segments full
        await stored(tier, keys_of(first, 50))
    await tier.flush()
    assert await right(tier, hot) == hot
    await tier._upkeep.once()
    carry = tier._carrier._carry

    async def carry_and_fail(*arguments: Any) -> None:
        await carry(*arguments)
        raise TierError("nvme", "the index is held by another process")

    with monkeypatch.context() as patched:
        patched.setattr(tier._carrier, "_carry", carry_and_fail)
        with pytest.raises(TierError, match="held by another"):
            await tier._carrier.reclaim(carry=True)
    assert await tier._carrier.reclaim(carry=True)
    assert files.unsynced_then[-1] == 0
    assert await right(tier, hot) == hot
    await tier.close()
