"""Where the time of one request to the NVMe tier goes, step by step.

    python benchmarks/request_profile.py [--chunk-kib N] [--requests N] [--dir D] [--json FILE]

One request of 64 chunks after the other, as `store_one` and `load_one` of nvme.py; medians over the requests.
A step's span is from its first begin to its last end within the request, its CPU that of all threads in it;
steps may overlap.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from comparison.cases import KIB, REQUEST_CHUNKS, request
from comparison.kvtier_store import Kvtier
from comparison.memory import Memory, Pages, random_file
from comparison.syncs import Syncs
from nvme import scratch
from rich.console import Console
from rich.table import Table

from kvtier.tiers.nvme.format import checksum
from kvtier.tiers.nvme.index import environment as index
from kvtier.tiers.nvme.io import files, parts, pieces
from kvtier.tiers.nvme.log import batch

STEPS: dict[str, tuple[type, str]] = {
    "checksums": (checksum.ChunkChecksum, "of"),
    "writing": (files.Files, "pwritev"),
    "reading": (files.Files, "preadv"),
    "table": (batch.PlacedBatch, "write_table"),
    "commit": (index.Index, "write"),
    "pieces": (pieces.WritePiece, "__call__"),
    "parts": (parts.WritePart, "__call__"),
    "read pieces": (pieces.ReadPiece, "__call__"),
}


class Call(NamedTuple):
    step: str
    began_s: float
    ended_s: float
    cpu_s: float


@contextmanager
def recorded(calls: list[Call]) -> Iterator[None]:
    """Note every call of a step while this lasts."""

    def noting(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            began_s, cpu_s = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                calls.append(Call(step, began_s, time.perf_counter(), time.thread_time() - cpu_s))

        return wrapper

    patches = [
        mock.patch.object(owner, name, noting(step, getattr(owner, name)))
        for step, (owner, name) in STEPS.items()
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def profile(send: Callable[..., Any], requests: int) -> dict[str, dict[str, float]]:
    """Medians in milliseconds for each step: when it begins, when it has ended, its CPU, its calls."""
    found: dict[str, list[tuple[float, float, float, int]]] = defaultdict(list)
    calls: list[Call] = []
    with recorded(calls):
        for number in range(requests):
            keys, _ = request(number, REQUEST_CHUNKS, b"")
            calls.clear()
            began_s, cpu_s = time.perf_counter(), time.process_time()
            send(keys, list(range(REQUEST_CHUNKS))).result()
            total = time.perf_counter() - began_s, time.process_time() - cpu_s
            found["whole request"].append((0.0, *total, 1))
            own = [call for call in calls if call.began_s > began_s]  # not the upkeep's of before
            for step in {call.step for call in own}:
                mine = [call for call in own if call.step == step]
                first, last = min(call.began_s for call in mine), max(call.ended_s for call in mine)
                cpu = sum(call.cpu_s for call in mine)
                found[step].append((first - began_s, last - began_s, cpu, len(mine)))
    steps = {step: rows for step, rows in found.items() if 2 * len(rows) > requests}
    names = ("from_ms", "to_ms", "cpu_ms", "calls")
    scales = (1000, 1000, 1000, 1)
    return {
        step: {
            name: scale * statistics.median(column)
            for name, scale, column in zip(names, scales, zip(*rows, strict=True), strict=True)
        }
        for step, rows in sorted(steps.items(), key=lambda item: statistics.median(row[1] for row in item[1]))
    }


def shown(console: Console, title: str, steps: dict[str, dict[str, float]]) -> None:
    table = Table("step", "from ms", "to ms", "CPU ms", "calls", title=title)
    for step, numbers in steps.items():
        table.add_row(step, *(f"{numbers[name]:.2f}" for name in ("from_ms", "to_ms", "cpu_ms", "calls")))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk-kib", type=int, default=64)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--dir", type=Path, help="a directory on the drive to measure")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chunk_bytes = arguments.chunk_kib * KIB
    with scratch(arguments.dir) as root, random_file(REQUEST_CHUNKS * chunk_bytes) as memory_fd:
        memory = Memory(Pages(memory_fd), REQUEST_CHUNKS, chunk_bytes)
        store = Kvtier(root / "store", memory, Syncs(0).run, None)
        try:
            store.store(*request(0, REQUEST_CHUNKS, b"warm")).result()
            gc.collect()
            gc.freeze()
            found = {
                "store": profile(store.store, arguments.requests),
                "load": profile(store.load, arguments.requests),
            }
        finally:
            store.close()
    console = Console()
    for direction, steps in found.items():
        shown(console, f"{direction}: one request of {REQUEST_CHUNKS} x {arguments.chunk_kib} KiB", steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
