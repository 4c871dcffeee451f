"""A process that serves from a store while another program fills the file system."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from loop_rig import MIB, Drive
from nvme_rig import filled, keys_of, opened, right

ROUNDS = 60
BATCH = 64
FILL_AT = 20


async def main(path: Path, reserve_bytes: int) -> None:
    """Store, load and flush; whatever the file system says, this ends with right bytes or misses."""
    tier = await opened(path, capacity_bytes=100 * MIB, reserve_bytes=reserve_bytes)
    for number in range(ROUNDS):
        if number == FILL_AT:
            Drive("", path.parent).fill()
        keys = keys_of(number * BATCH, BATCH)
        await tier.store(keys, filled(keys))
        await right(tier, keys)
        tier.lookup(keys)
    await tier.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
