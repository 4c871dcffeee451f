"""How long a pinned arena takes to start: until it can be used, and until all its pages are there.

    python benchmarks/arena.py --gib 1 8 16 --json arena.json

Sizes that do not fit into this machine are left out. Each figure is the median of `--repeat` runs, each with
a new arena. Nothing is page-locked: pages are touched, as they are before a device gets them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kvtier.tiers.pinned import pinning
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.arenafile import SHARED_MEMORY
from kvtier.tiers.pinned.memory import memory_room, shared_memory_room

CHUNK_BYTES = 2 << 20  # 64 tokens of an 8-billion-parameter model at 8 bits, rounded

MAPPERS = 2


@dataclass(frozen=True, slots=True)
class Run:
    """What one start took, in seconds.

    Attributes:
        create_s: until the first process has the arena.
        first_chunk_s: until it has also written a chunk into it, untouched until then.
        attach_s: until a second process has it.
        touch_s: from then until all pages are there.
        touch_again_s: until the second process has mapped those pages, too.
    """

    create_s: float
    first_chunk_s: float
    attach_s: float
    touch_s: float
    touch_again_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The medians of one size and one number of threads."""

    gib: int
    threads: int
    median: Run


class Stopwatch:
    def __init__(self) -> None:
        self._started_s = time.perf_counter()

    def read_s(self) -> float:
        return time.perf_counter() - self._started_s


def measure(gib: int, threads: int) -> Run:
    """Start one arena in this process and a second one, and take it down again."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    second = multiprocessing.get_context("spawn").Process(target=second_process, args=(theirs, gib, threads))
    second.start()
    theirs.close()
    ours.recv()  # it is up: the interpreter's start is not ours to measure
    clock = Stopwatch()
    arena = open_arena(gib, os.getpid())
    create_s = clock.read_s()
    arena.buffer(arena.slot_count - 1)[:] = bytes(CHUNK_BYTES)
    first_chunk_s = clock.read_s()
    attach_s = ask(ours, os.getpid())
    touch_s = touch(arena, threads)
    touch_again_s = ask(ours, "touch")
    arena.close()
    ours.close()
    second.join()
    return Run(create_s, first_chunk_s, attach_s, touch_s, touch_again_s)


def second_process(pipe: Connection, gib: int, threads: int) -> None:
    pipe.send("up")
    owner = pipe.recv()
    clock = Stopwatch()
    arena = open_arena(gib, owner)
    pipe.send(clock.read_s())
    pipe.recv()
    pipe.send(touch(arena, threads))
    arena.close()


def open_arena(gib: int, owner: int) -> Arena:
    return Arena.shared(
        f"benchmark-{owner}", gib * 2**30 // CHUNK_BYTES, CHUNK_BYTES, 1, mappers=MAPPERS, ranks=1
    )


def touch(arena: Arena, threads: int) -> float:
    pinning.THREADS_MAX = threads
    clock = Stopwatch()
    arena.pinning.begin(None)
    arena.pinning.wait()
    assert arena.pinning.touched_bytes == arena.slot_count * arena.slot_bytes, "all pages are there"
    return clock.read_s()


def ask(pipe: Connection, order: object) -> float:
    pipe.send(order)
    return float(pipe.recv())


def medians(runs: Sequence[Run]) -> Run:
    rows = [asdict(run) for run in runs]
    return Run(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})


def fitting(sizes_gib: Sequence[int]) -> list[int]:
    left_bytes = min(memory_room().left_bytes, shared_memory_room(SHARED_MEMORY).left_bytes)
    return [gib for gib in sizes_gib if (gib + 0.1) * 2**30 <= left_bytes]


def table_of(figures: Sequence[Figures]) -> Table:
    table = Table(title="start of a shared arena, medians")
    for title in (
        "GiB",
        "threads",
        "create ms",
        "first chunk ms",
        "attach ms",
        "touch s",
        "GiB/s",
        "again s",
    ):
        table.add_column(title, justify="right")
    for each in figures:
        run = each.median
        in_ms = (f"{value * 1e3:.2f}" for value in (run.create_s, run.first_chunk_s, run.attach_s))
        touched = f"{run.touch_s:.3f}", f"{each.gib / run.touch_s:.2f}", f"{run.touch_again_s:.3f}"
        table.add_row(str(each.gib), str(each.threads), *in_ms, *touched)
    return table


def machine() -> dict[str, object]:
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "huge_pages_of_shared_memory": huge_pages.read_text().strip() if huge_pages.exists() else "none",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 8, 16], help="sizes to start")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="threads that touch pages")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    default_threads = sorted({1, min(pinning.THREADS_MAX, len(os.sched_getaffinity(0)))})
    sizes_gib = fitting(options.gib)
    figures = [
        Figures(gib, threads, medians([measure(gib, threads) for _ in range(options.repeat)]))
        for gib in sizes_gib
        for threads in options.threads or default_threads
    ]
    console = Console()
    console.print(table_of(figures))
    left_out = [gib for gib in options.gib if gib not in sizes_gib]
    if left_out:
        console.print(f"left out, for they do not fit here: {', '.join(map(str, left_out))} GiB")
    if options.json:
        document = {"machine": machine(), "figures": [asdict(each) for each in figures], "left_out": left_out}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
