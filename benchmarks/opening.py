"""What a start costs: with a checkpoint that is some chunks old, and with nothing but the log.

    python benchmarks/opening.py --chunks 1000000 --since 100000

Makes a store of that many chunks without writing their payloads: tables, trailers and index are real. Then
each start is measured in a process of its own: the time until it serves, until it finds its newest chunks and
until it has caught up, the peak of resident memory above a process that only imports, and the major faults of
the first lookups.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvtier.tiers.base import Buffer, ChunkKey
from kvtier.tiers.nvme.io.blocks import scratch
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.checkpoint import write_checkpoint
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier

KIB, MIB = 1024, 1024 * 1024
CHUNK_BYTES = 4 * KIB
BATCH = 2000
LOOKUPS = 100
IDENTITY = Identity({"model": "benchmark"})


class WithoutPayload(Files):
    """The real files, but chunks are not written: what a start reads of a log are its tables."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if len(buffers) > 1:
            return sum(map(len, buffers))
        return super().pwritev(fd, buffers, offset)


class AnotherBoot(Files):
    """The files after a reboot: shared memory is gone."""

    def boot_id(self) -> str:
        return "another boot"


def keys_of(start: int, count: int) -> list[ChunkKey]:
    numbers = range(start, start + count)
    return [hashlib.sha256(struct.pack("<Q", n)).digest() + b"\0\0\0\0" for n in numbers]


async def opened(path: Path, chunks: int, files: Files) -> NvmeTier:
    capacity_bytes = 2 * chunks * CHUNK_BYTES
    return await NvmeTier.open(
        path,
        capacity_bytes=capacity_bytes,
        reserve_bytes=0,
        identity=IDENTITY,
        chunk_bytes=CHUNK_BYTES,
        files=files,
    )


async def make(path: Path, chunks: int, since: int, *, checkpoint: bool) -> None:
    """Store the chunks, with a checkpoint before the last `since`; end as a killed server does."""
    tier, buffer = await opened(path, chunks, WithoutPayload()), scratch(CHUNK_BYTES)[:CHUNK_BYTES]
    for start in range(0, chunks, BATCH):
        if start == chunks - since and checkpoint:
            await tier._lanes.upkeep(lambda: write_checkpoint(tier._store.directory, tier._index))
        outcome = await tier.store(keys_of(start, BATCH), [buffer] * BATCH)
        assert not outcome.failed, outcome.failed
    if not checkpoint:
        (path / "checkpoint").unlink(missing_ok=True)
    os._exit(0)


async def start(path: Path, chunks: int) -> None:
    """One start, measured."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.perf_counter()
    tier = await opened(path, chunks, AnotherBoot())
    open_s = time.perf_counter() - began_s
    open_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
    for key in keys_of(0, LOOKUPS):
        tier.lookup([key])
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - faults
    newest = keys_of(chunks - BATCH, 1)
    while not tier.lookup(newest)[0]:
        await asyncio.to_thread(time.sleep, 0.01)
    newest_s = time.perf_counter() - began_s
    await tier._keeper.caught_up()
    found = {
        "open_s": round(open_s, 3),
        "newest_s": round(newest_s, 3),
        "caught_up_s": round(time.perf_counter() - began_s, 3),
        "open_rss_mib": (open_rss - before) // KIB,
        "rss_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // KIB,
        "major_faults": faults,
        "chunks": tier.stats().chunks,
    }
    print(json.dumps(found), flush=True)
    await tier.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--since", type=int, default=100_000)
    parser.add_argument("--path", type=Path, default=Path("opening-benchmark"))
    parser.add_argument("--step", choices=("make", "make-log", "start"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "start":
        asyncio.run(start(arguments.path, arguments.chunks))
        return
    if arguments.step:
        checkpoint = arguments.step == "make"
        asyncio.run(make(arguments.path, arguments.chunks, arguments.since, checkpoint=checkpoint))
    for name, step in (("checkpoint and log", "make"), ("log alone", "make-log")):
        shutil.rmtree(arguments.path, ignore_errors=True)
        options = [sys.executable, __file__, "--chunks", str(arguments.chunks)]
        options += ["--since", str(arguments.since), "--path", str(arguments.path), "--step"]
        subprocess.run([*options, step], check=True)
        result = subprocess.run([*options, "start"], check=True, capture_output=True, text=True)
        print(f"{name}: {result.stdout.strip()}", flush=True)
    shutil.rmtree(arguments.path, ignore_errors=True)


if __name__ == "__main__":
    main()
