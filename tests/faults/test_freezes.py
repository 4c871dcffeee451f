"""File systems that are frozen"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import fault, in_child
from loop_rig import MIB, drive, needs, run
from nvme_rig import filled, keys_of, opened, right, stored

from kvtier.tiers.breaker import PAUSE_S, Breaker, BreakerState

FREEZE_S = 3.0
THAW_S = 60  # if nobody else thaws it: a process that waits for it in the kernel cannot be killed
BEAT_S = 0.02
LATE_S = 1.0  # a lookup takes microseconds
SLOW_S = 10.0
OLD, NEW = keys_of(0, 64), keys_of(100, 8)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def thawed_at_last(point: Path) -> Iterator[None]:
    """Have it thawed by somebody else, should this process hang."""
    thaw = ["sh", "-c", f"sleep {THAW_S} & trap 'kill $!' TERM; wait $!; fsfreeze -u {point}"]
    with subprocess.Popen(thaw, stderr=subprocess.DEVNULL) as thawing:
        try:
            yield
        finally:
            thawing.terminate()


async def longest_stand_s(tier: Breaker, seconds: float) -> float:
    """Look up and do other work of the loop for a while; the longest that one round took."""
    end_s, longest_s = time.monotonic() + seconds, 0.0
    while (began_s := time.monotonic()) < end_s:
        assert all(tier.lookup(OLD))
        tier.stats()
        await asyncio.sleep(BEAT_S)
        longest_s = max(longest_s, time.monotonic() - began_s)
    return longest_s


@fault(
    "the file system is frozen (fsfreeze, a snapshot by a backup)",
    sees="lookups, statistics and every other thread go on; transfers wait, and the breaker opens",
    loses="nothing",
    heals="by itself, when it is thawed",
)
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_freeze(tmp_path: Path, kind: str) -> None:
    needs("fsfreeze")
    with drive(kind, tmp_path, 128 * MIB) as made, thawed_at_last(made.point):

        async def serve() -> None:
            clock = Clock()
            path = made.point / "store"
            tier = Breaker(await opened(path, capacity_bytes=32 * MIB), slow_s=SLOW_S, clock=clock)
            await stored(tier, OLD)  # type: ignore[arg-type]
            await tier.flush()
            run("fsfreeze", "-f", made.point)
            # Upkeep alone at first, whose own work is what stands still; then a store as well.
            longest_s = await longest_stand_s(tier, FREEZE_S / 2)
            storing = asyncio.ensure_future(tier.store(NEW, filled(NEW)))
            longest_s = max(longest_s, await longest_stand_s(tier, FREEZE_S / 2))
            assert longest_s < LATE_S, f"the process stood still for {longest_s:.1f} s"
            assert not storing.done()
            clock.now_s += SLOW_S + 1
            assert tier.state is BreakerState.OPEN
            assert not any(tier.lookup(OLD))
            run("fsfreeze", "-u", made.point)
            assert (await storing).succeeded == tuple(NEW)
            clock.now_s += PAUSE_S
            assert await right(tier, OLD + NEW) == OLD + NEW  # type: ignore[arg-type]
            assert tier.stats().gauges["breaker_state"] == BreakerState.CLOSED
            await tier.close()

        try:
            assert in_child(serve) == 0
        finally:
            subprocess.run(["fsfreeze", "-u", made.point], capture_output=True, check=False)
