"""Power losses, and clocks that jump"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from faults import fault
from faulty_files import AnotherBoot, UnsyncedFiles
from nvme_rig import keys_of, opened, right, stored

from kvtier.tiers.base import RemoveReason

FLUSHED, LATER = keys_of(0, 40), keys_of(100, 40)
HOUR_NS = 3600 * 10**9


@fault(
    "a power loss, a reset, a crash of the kernel",
    sees="a start that reads what the log has had since the checkpoint, while it serves",
    loses="what was stored since the last flush, or the last sync in the background",
    heals="by itself, at the next start; no byte is wrong",
)
async def test_a_power_loss(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    files, left = UnsyncedFiles(), tmp_path / "left"
    tier = await opened(tmp_path / "store", files=files)
    await stored(tier, FLUSHED)
    await tier.flush()
    await stored(tier, LATER)
    files.lose_power(tmp_path / "store", left, random.Random(seed))
    await tier.close()
    after = await opened(left, files=AnotherBoot())
    assert await right(after, FLUSHED) == FLUSHED
    await right(after, LATER)
    await after.close()


@fault(
    "the clock is set back, and then the power is lost",
    sees="nothing",
    loses="nothing: removals stay final, whatever the clock says",
    heals="-",
)
async def test_a_clock_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, FLUSHED)
    await tier.close()
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() - HOUR_NS)
    tier = await opened(path)
    await tier.remove(FLUSHED, RemoveReason.REQUESTED)
    await tier.flush()
    shutil.copytree(path, tmp_path / "left")  # still marked as in use
    await tier.close()
    after = await opened(tmp_path / "left", files=AnotherBoot())
    assert not any(after.lookup(FLUSHED))
    await after.close()


@fault(
    "a clock before 1970, or after 2106",
    sees="nothing",
    loses="nothing",
    heals="-",
)
@pytest.mark.parametrize("now_s", [-500.0, 2.0**32 + 1])
async def test_a_clock_far_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: float) -> None:
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now_s)
        clock.setattr(time, "time_ns", lambda: int(now_s * 1e9))
        tier = await opened(tmp_path / "store")
        await stored(tier, FLUSHED)
        await tier.remove(FLUSHED[:8], RemoveReason.REQUESTED)
        await tier.close()
    tier = await opened(tmp_path / "store")
    await stored(tier, LATER)
    assert await right(tier, FLUSHED + LATER) == FLUSHED[8:] + LATER
    await tier.close()
