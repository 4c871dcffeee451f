"""Two steps of `benchmarks/nvme.py`, each a process of its own: fill a store with many chunks; measure it."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

EMPTY_RSS_BYTES = psutil.Process().memory_info().rss  # before anything of kvtier is imported

CHUNK_BYTES = 4096  # the index does not care how long a chunk is
FILL_BATCH = 1024
LOOKUP_BATCH = 64
LOOKUPS = 2000


def key_of(number: int) -> bytes:
    return b"%032d" % number


async def opened(path: Path, count: int) -> Any:
    from kvtier.tiers.nvme.store.namespaces import Identity
    from kvtier.tiers.nvme.tier import NvmeTier

    return await NvmeTier.open(
        path,
        capacity_bytes=4 * count * CHUNK_BYTES + (512 << 20),
        reserve_bytes=0,
        identity=Identity({"model": "benchmark"}),
        chunk_bytes=CHUNK_BYTES,
    )


async def fill(path: Path, count: int) -> None:
    from kvtier.tiers.testing import aligned_buffers

    tier = await opened(path, count)
    buffers = aligned_buffers(FILL_BATCH, CHUNK_BYTES)
    for first in range(0, count, FILL_BATCH):
        keys = [key_of(number) for number in range(first, min(first + FILL_BATCH, count))]
        outcome = await tier.store(keys, buffers[: len(keys)])
        assert not outcome.failed, set(outcome.failed.values())
    await tier.close()


async def measure(path: Path, count: int) -> dict[str, float]:
    from kvtier.tiers.nvme import tier as _nvme  # noqa: F401 - imports are not part of opening

    began_s = time.perf_counter()
    tier = await opened(path, count)
    open_s = time.perf_counter() - began_s
    rng = random.Random(0)
    per_key, cached = [], []
    for _ in range(LOOKUPS):
        keys = [key_of(rng.randrange(count)) for _ in range(LOOKUP_BATCH)]
        for costs in (per_key, cached):  # the second time, what it reads is in the CPU's caches
            began_s = time.perf_counter()
            found = tier.lookup(keys)
            costs.append((time.perf_counter() - began_s) / LOOKUP_BATCH)
            assert all(found)
    rss = psutil.Process().memory_info().rss - EMPTY_RSS_BYTES
    await tier.close()
    return {
        "chunks": count,
        "open_s": open_s,
        "lookup_us_per_key": 1e6 * statistics.median(per_key),
        "lookup_us_per_key_cached": 1e6 * statistics.median(cached),
        "lookup_us_per_key_p99": 1e6 * sorted(per_key)[int(len(per_key) * 0.99)],
        "rss_mib": rss / (1 << 20),
    }


def main() -> None:
    step, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if step == "fill":
        asyncio.run(fill(path, count))
    else:
        print(json.dumps(asyncio.run(measure(path, count))))


if __name__ == "__main__":
    main()
