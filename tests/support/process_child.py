"""A process that stores and loads keys that others store and load as well, for a number of rounds."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from nvme_rig import filled, keys_of, opened, right

KEYS_COUNT = 4000  # far more than fit: everybody reclaims all the time
BATCH_MAX = 16


async def work(path: Path, capacity_bytes: int, seed: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(seed)
    tier = await opened(path, capacity_bytes=capacity_bytes)
    print("ready", flush=True)
    stored = loaded = 0
    for _ in range(rounds):
        start = rng.randrange(KEYS_COUNT)
        keys = keys_of(start, rng.randint(1, BATCH_MAX))
        stores = tier.store(keys, filled(keys))
        loads = right(tier, keys_of(max(0, start - 20), 40))  # asserts that what comes back is right
        outcome, found = await asyncio.gather(stores, loads)
        stored, loaded = stored + len(outcome.succeeded), loaded + len(found)
        if rng.random() < 0.1:
            await tier.flush()
    counters = dict(tier.stats().counters)
    await tier.close()
    return {"stored": stored, "loaded": loaded, **counters}


if __name__ == "__main__":
    result = asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    print(json.dumps(result), flush=True)
