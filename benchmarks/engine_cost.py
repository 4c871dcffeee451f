"""What the library's jobs cost: CPU time and rate of stores and loads, beside another revision.

    python benchmarks/engine_cost.py [--revision REV] [--runs N] [--dir D] [--json FILE]

Jobs of 64 chunks, 8 in flight, on tensors of the CPU. Each case of each run is a process of its own, and the
revisions take turns. CPU time is that of all threads; medians over the runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import checkout
from comparison.revisions import checked_out
from nvme import scratch
from rich.console import Console
from rich.table import Table

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
JOB_CHUNKS = 64
JOBS_IN_FLIGHT = 8
BLOCKS = JOB_CHUNKS * JOBS_IN_FLIGHT


class Case(NamedTuple):
    """Chunks of one size go through an arena.

    Attributes:
        chunks: different ones that are stored, and loaded again from where they lie then.
        on_drive: whether there is a drive below.
        rounds: how often they are loaded.
    """

    chunk_bytes: int
    arena_bytes: int
    chunks: int
    on_drive: bool
    rounds: int


CASES = {
    "1 MiB, arena of 128 MiB over a drive": Case(MIB, 128 * MIB, 2048, True, 1),
    "64 KiB, arena of 1 GiB over a drive": Case(64 * KIB, GIB, 8192, True, 8),
    "4 KiB, arena alone": Case(4 * KIB, 256 * MIB, 32768, False, 4),
}
DIRECTIONS = ("store", "load")


def measured(case: Case, root: Path) -> dict[str, dict[str, float]]:
    """Store all chunks and load them, in this process; microseconds of CPU a chunk, and MiB/s."""
    import torch

    from kvtier.engine import OffloadEngine

    tiers: list[dict[str, Any]] = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": case.arena_bytes, "policy": "lru"},
    ]
    if case.on_drive:
        tiers.append({"type": "nvme", "path": str(root / "store"), "capacity": 8 * GIB, "reserve": 0})
    blocks = torch.ones((BLOCKS, case.chunk_bytes), dtype=torch.uint8)
    keys = [number.to_bytes(32, "big") for number in range(case.chunks)]
    with OffloadEngine.open({"version": 1, "tiers": tiers}, {"model": "benchmark"}) as engine:
        engine.register_kv_caches([blocks])
        engine.store(keys[:JOB_CHUNKS], list(range(JOB_CHUNKS))).wait()  # warm
        engine.flush()
        for thread in threading.enumerate():  # the arena's pages are touched meanwhile
            if thread.name.startswith("kvtier-pinning"):
                thread.join()
        gc.collect()
        gc.freeze()
        stored = _timed(case, lambda: _jobs(engine.store, keys, engine.flush if case.on_drive else None))
        loaded = _timed(case, lambda: _jobs(engine.load, keys * case.rounds, None))
    loaded = {"cpu_us": loaded["cpu_us"] / case.rounds, "mib_s": loaded["mib_s"] * case.rounds}
    return {"store": stored, "load": loaded}


def _jobs(call: Callable[..., Any], keys: Sequence[bytes], end: Callable[[], None] | None) -> None:
    waiting: deque[Any] = deque()
    for number, start in enumerate(range(0, len(keys), JOB_CHUNKS)):
        if len(waiting) == JOBS_IN_FLIGHT:
            assert not waiting.popleft().wait().failed, "every chunk moves"
        first = number % JOBS_IN_FLIGHT * JOB_CHUNKS
        waiting.append(call(keys[start : start + JOB_CHUNKS], list(range(first, first + JOB_CHUNKS))))
    while waiting:
        assert not waiting.popleft().wait().failed, "every chunk moves"
    if end is not None:
        end()


def _timed(case: Case, work: Callable[[], None]) -> dict[str, float]:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    mib = case.chunks * case.chunk_bytes / MIB
    return {"cpu_us": cpu_s / case.chunks * 1e6, "mib_s": mib / took_s}


def run_apart(root: Path, name: str, place: Path) -> dict[str, dict[str, float]]:
    """One case of the revision that is checked out at `root`, in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(root), str(place)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found: dict[str, dict[str, float]] = json.loads(lines[-1])
    return found


def show(result: dict[str, Any], console: Console) -> None:
    names = list(next(iter(result.values()))["store"])
    table = Table(
        "case", "", *(f"{name}: CPU µs a chunk" for name in names), *(f"{name}: MiB/s" for name in names)
    )
    for case, directions in result.items():
        for direction, systems in directions.items():
            row = [f"{systems[name]['cpu_us']:.1f}" for name in names]
            row += [f"{systems[name]['mib_s']:.0f}" for name in names]
            table.add_row(case, direction, *row)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", help="compare with this git revision")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="a directory on the drive to measure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=CASES, help="measure this case alone")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, root, place = options.measure
        sys.modules["kvtier"] = checkout.namespace(Path(root))
        print(json.dumps(measured(CASES[name], Path(place))))
        return
    runs: dict[str, dict[str, list[dict[str, dict[str, float]]]]] = {}
    cases = [options.only] if options.only else list(CASES)
    with ExitStack() as at_end:
        place = at_end.enter_context(scratch(options.dir))
        systems = {"this": checkout.ROOT}
        if options.revision:
            systems[options.revision] = at_end.enter_context(checked_out(options.revision))
        for run in range(options.runs):
            for case in cases:
                for name, root in systems.items():
                    found = run_apart(root, case, place / f"{run}-{name}-{cases.index(case)}")
                    runs.setdefault(case, {}).setdefault(name, []).append(found)
    result = {
        case: {
            direction: {
                name: {
                    figure: statistics.median(found[direction][figure] for found in of_system)
                    for figure in ("cpu_us", "mib_s")
                }
                for name, of_system in by_system.items()
            }
            for direction in DIRECTIONS
        }
        for case, by_system in runs.items()
    }
    show(result, Console(width=150))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
