"""What it costs to open a store that is there, on the same boot, by how its last user has left it.

    python benchmarks/reopening.py [--runs N] [--dir D] [--json FILE]

Stores of 0, 10,000 and 1,000,000 chunks: left by a clean close, by a kill, or still open in another process.
Each open is the first of its process; imports are not part of it. Beside it stands what looking at the file
system takes, which is a part of each open, and the same with a lock tried from a second process. Medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index_cost import fill, opened
from nvme import machine, scratch
from rich.console import Console
from rich.table import Table

from kvtier.tiers.nvme import tier as _tier  # noqa: F401 - imports are not part of opening
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.volume.probe import examined

COUNTS = (0, 10_000, 1_000_000)

Times = dict[str, float]


def run(step: str, path: Path, count: int) -> Any:
    """One step in a process of its own; what it has printed."""
    command = [sys.executable, __file__, "--step", step, "--store", str(path), "--chunks", str(count)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output) if output else None


@contextmanager
def held_open(path: Path, count: int) -> Iterator[None]:
    """Another process has the store open."""
    command = [sys.executable, __file__, "--step", "hold", "--store", str(path), "--chunks", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.communicate()


def measured(path: Path, count: int, runs: int) -> dict[str, Times]:
    """Medians in milliseconds for each way in which the last user may have left the store."""
    run("fill", path, count)
    found = {"closed": [run("close", path, count) for _ in range(runs)]}
    found["killed"] = []
    for _ in range(runs):  # one end of two is sudden: after two in a row an index is distrusted
        run("kill", path, count)
        found["killed"].append(run("close", path, count))
    with held_open(path, count):
        found["open elsewhere"] = [run("close", path, count) for _ in range(runs)]
    return {
        left: {name: statistics.median(times[name] for times in all_times) for name in all_times[0]}
        for left, all_times in found.items()
    }


async def open_once(path: Path, count: int) -> tuple[Any, Times]:
    began_s = time.perf_counter()
    examined(Files(), path)
    examined_s = time.perf_counter()
    examined(Files(), path, thorough=True)
    thorough_s = time.perf_counter()
    tier = await opened(path, count)
    ended_s = time.perf_counter()
    return tier, {
        "open_ms": 1000 * (ended_s - thorough_s),
        "examined_ms": 1000 * (examined_s - began_s),
        "thorough_ms": 1000 * (thorough_s - examined_s),
    }


async def step(name: str, path: Path, count: int) -> None:
    """One of: fill the store; open it and close it, be killed, or hold it until standard input ends."""
    if name == "fill":
        await fill(path, count)
        return
    tier, times = await open_once(path, count)
    print(json.dumps(times), flush=True)
    if name == "kill":
        os._exit(0)
    if name == "hold":
        await asyncio.to_thread(sys.stdin.read)
    await tier.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--runs", type=int, default=7, help="opens of each kind (default: 7)")
    parser.add_argument("--dir", type=Path, help="a directory on the drive to use (default: here)")
    for name, kind in (("--step", str), ("--store", Path), ("--chunks", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        asyncio.run(step(options.step, options.store, options.chunks))
        return
    console = Console(stderr=True)
    table = Table("chunks", "last user", "open ms", "the file system ms", "with a second process ms")
    with scratch(options.dir) as root:
        result: dict[str, Any] = {"machine": machine(root), "stores": []}
        for count in COUNTS:
            for left, times in measured(root / str(count), count, options.runs).items():
                result["stores"].append({"chunks": count, "left": left, **times})
                table.add_row(f"{count:,}", left, *(f"{ms:.1f}" for ms in times.values()))
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
