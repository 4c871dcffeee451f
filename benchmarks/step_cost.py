"""What an offloading plugin adds to a step of vLLM's scheduler: kvtier, and vLLM's own tiering over files.

    python benchmarks/step_cost.py [--json FILE] [--runs N] [--quick] [--dir D]

The real vLLM on the CPU with a tiny model, 64 requests running and 256 waiting, while fio keeps the drive
busy. The plugin's cost of a step is what the calls into it take, in the scheduler and in the worker, by the
clock on the wall and on a core. Around it lies vLLM's own offloading connector, which is the same for both,
and around that all that the scheduler does in a step: there also shows what the plugin's threads take from
the interpreter. vLLM without a plugin stands beside them.

The scheduler's process, with the plugin's threads, has a core to itself. The model, the front end with its
320 requests, and fio share the other one. fio moves 1 MiB at a time from registered buffers, so that it takes
the drive and not the core.

Prompts open with one of many prefixes that an earlier phase has brought to the drive. Device and pinned tier
hold a part of them, so that lookups reach the drive, chunks are promoted and stores cascade. The systems take
turns. Percentiles are those of one run's steps, and the figures are medians over the runs.

The garbage collector is as in any vLLM server: the processes of the scheduler and of the worker freeze by
themselves what is on their heaps once they have started (`freeze_gc_heap`), and it goes on collecting.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvme import machine, scratch
from rich.console import Console
from rich.table import Table
from steps import Calls, Step, percentile, read_steps

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "factory" / "vllm")]

from tiny_llama import KV_BYTES_PER_TOKEN, VOCABULARY  # noqa: E402 - the harness of the tests
from vllm_server import Samples, Server, Settings, tier_document  # noqa: E402

MIB = 1 << 20
GIB = 1 << 30

RUNNING = 64
WAITING = 256
RUNNING_MIN = 56  # a place is empty while its request's chunks come
WAITING_MIN = 240  # a request that ends makes way for one that takes a moment to come

BLOCK_TOKENS = 32
CHUNK_BYTES = BLOCK_TOKENS * KV_BYTES_PER_TOKEN
PREFIX_TOKENS = 12 * BLOCK_TOKENS
PROMPT_TOKENS = 16 * BLOCK_TOKENS + 1
OUTPUT_TOKENS = (16, 112)  # drawn between these, so that requests do not end in waves
PREFIXES = 96
DEVICE_BLOCKS = 1400  # RUNNING requests take 1,150
PINNED_BYTES = 64 * MIB  # a fourth of the prefixes
REQUESTS = 800
QUICK_REQUESTS = 450

BATCH_TOKENS = 1024  # a step

MODEL_CORE, SCHEDULER_CORE = 0, 1  # the front end and fio share the model's

WIDTH = 150  # of the table

FIO = (
    *("--rw=randrw", "--direct=1", "--size=1g", "--bs=1m", "--iodepth=8"),
    *("--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"),
)
FIO_RUNTIME_MAX_S = 1200

COLUMNS = {
    "manager p50": "manager_ms_p50",
    "its p99": "manager_ms_p99",
    "its max": "manager_ms_max",
    "its CPU p50": "manager_cpu_ms_p50",
    "its CPU p99": "manager_cpu_ms_p99",
    "worker p50": "worker_ms_p50",
    "worker p99": "worker_ms_p99",
    "scheduler p50": "scheduler_ms_p50",
    "scheduler p99": "scheduler_ms_p99",
    "step p50": "step_ms_p50",
}

Figures = dict[str, float]


def plain(root: Path) -> dict[str, Any]:
    return {}


def kvtier(root: Path) -> dict[str, Any]:
    return {"tiers": tier_document(pinned=PINNED_BYTES, nvme=root / "kvtier", nvme_capacity=4 * GIB)}


def native_fs(root: Path) -> dict[str, Any]:
    tier = {"type": "fs", "root_dir": str(root / "fs")}
    extra = {"cpu_bytes_to_use": PINNED_BYTES, "secondary_tiers": [tier]}
    return {"tiers": {}, "spec": ("native_spec", "CpuTieringSpec"), "extra": extra}


SYSTEMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": plain,
    "kvtier": kvtier,
    "native_fs": native_fs,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one system.

    Attributes:
        steps: those with the full load.
        hit_tokens: tokens that came from the plugin.
    """

    steps: list[Step]
    hit_tokens: float


def run_system(name: str, root: Path, model: Path, requests: int, *, busy_disk: bool) -> Run:
    """Bring the prefixes to the drive, then measure."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="steps-") as logs:
        life = Settings(
            model=model,
            connector=("RecordedConnector", "recorded"),
            engine={
                "scheduler_cls": "recorded.RecordedScheduler",
                "block_size": BLOCK_TOKENS,
                "num_gpu_blocks_override": DEVICE_BLOCKS,
                "max_num_seqs": RUNNING,
                "max_num_batched_tokens": BATCH_TOKENS,
                "max_model_len": 1024,
            },
            environment={
                "KVTIER_BENCH_STEPS": logs,
                "VLLM_CPU_OMP_THREADS_BIND": str(MODEL_CORE),
                "KVTIER_BENCH_CORE": str(SCHEDULER_CORE),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[:2]]),
            },
            **SYSTEMS[name](root),
        )
        rng = random.Random(1_609)
        prefixes = [_tokens(rng, PREFIX_TOKENS) for _ in range(PREFIXES)]
        with Server(life, log=root / "log") as server:
            server.generate_together([[*prefix, 1] for prefix in prefixes], output_tokens=1)
            before = server.drain()
            with saturated(root) if busy_disk else tempfile.TemporaryDirectory():
                prompts = [
                    rng.choice(prefixes) + _tokens(rng, PROMPT_TOKENS - PREFIX_TOKENS)
                    for _ in range(requests)
                ]
                lengths = [rng.randint(*OUTPUT_TOKENS) for _ in prompts]
                ended = server.storm(prompts, at_once=RUNNING + WAITING, output_tokens=lengths)
            assert ended == requests, "every request comes to its end"
            hit_tokens = _hits(server.samples()) - _hits(before)
        return Run(full(read_steps(Path(logs))), hit_tokens)


def full(steps: Sequence[Step]) -> list[Step]:
    """The steps with the full load: not those in which it built up or ran out."""
    return [step for step in steps if step.running >= RUNNING_MIN and step.waiting >= WAITING_MIN]


def figures(run: Run) -> Figures:
    """What one run has shown; milliseconds."""
    found: Figures = {"steps": len(run.steps), "hit_tokens": run.hit_tokens}
    for what, values in {
        "manager": [step.manager.total_ms for step in run.steps],
        "manager_cpu": [step.manager.total_cpu_ms for step in run.steps],
        "worker": [step.worker.total_ms for step in run.steps],
        "worker_cpu": [step.worker.total_cpu_ms for step in run.steps],
        "connector": [step.connector.total_ms for step in run.steps],
        "connector_cpu": [step.connector.total_cpu_ms for step in run.steps],
        "scheduler": [step.scheduler.total_ms for step in run.steps],
        "scheduler_cpu": [step.scheduler.total_cpu_ms for step in run.steps],
        "step": [step.length_ms for step in run.steps],
    }.items():
        found |= {
            f"{what}_ms_p50": percentile(values, 50),
            f"{what}_ms_p99": percentile(values, 99),
            f"{what}_ms_max": max(values),
        }
    for what in ("running", "waiting"):
        found[what] = statistics.median(getattr(step, what) for step in run.steps)
    for part in ("manager", "worker"):
        calls: list[Calls] = [getattr(step, part) for step in run.steps]
        for name in sorted({name for of_step in calls for name in of_step.took_ms}):
            for unit, values in {
                "ms": [of_step.took_ms.get(name, 0.0) for of_step in calls],
                "cpu_ms": [of_step.cpu_ms.get(name, 0.0) for of_step in calls],
            }.items():
                found[f"{part}_{name}_{unit}_p99"] = percentile(values, 99)
    return found


def medians(runs: Sequence[Figures]) -> Figures:
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}


@contextmanager
def saturated(root: Path) -> Iterator[None]:
    """Keep the drive's queue full until the end of the block, with a file that is removed then."""
    file = root / "saturate"
    command = ["fio", "--name=saturate", f"--filename={file}", *FIO, "--time_based"]
    command += [f"--runtime={FIO_RUNTIME_MAX_S}", "--output=/dev/null"]
    process = subprocess.Popen(command)
    try:
        yield
        assert process.poll() is None, "fio ran to the end"
    finally:
        process.terminate()
        process.wait()
        file.unlink(missing_ok=True)


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("ms a step", *COLUMNS, "steps", "tokens from tiers")
    for name, row in result["systems"].items():
        cells = [f"{row[column]:.2f}" for column in COLUMNS.values()]
        table.add_row(name, *cells, f"{row['steps']:.0f}", f"{row['hit_tokens']:.0f}")
    console.print(table)


def _hits(samples: Samples) -> float:
    return samples.total("vllm:external_prefix_cache_hits")


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--runs", type=int, default=3, help="runs of each system (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one run, fewer requests")
    parser.add_argument("--dir", type=Path, help="a directory on the drive to use (default: here)")
    options = parser.parse_args()
    console = Console(stderr=True, width=WIDTH)
    if not {MODEL_CORE, SCHEDULER_CORE} <= os.sched_getaffinity(0):
        parser.error(f"it takes cores {MODEL_CORE} and {SCHEDULER_CORE}, and may not use both of them here")
    os.sched_setaffinity(0, {MODEL_CORE})  # of all that is started here; the scheduler then moves
    busy_disk = shutil.which("fio") is not None
    if not busy_disk:
        console.print("fio is not installed: nothing keeps the drive busy")
    runs = 1 if options.quick else options.runs
    requests = QUICK_REQUESTS if options.quick else REQUESTS
    found: dict[str, list[Figures]] = {name: [] for name in SYSTEMS}
    with scratch(options.dir) as root:
        result: dict[str, Any] = {"machine": machine(root)}
        for run in range(runs):
            for name in SYSTEMS:
                console.print(f"run {run + 1} of {runs}: {name}")
                place = root / f"{name}-{run}"
                place.mkdir()
                found[name].append(
                    figures(run_system(name, place, root / "model", requests, busy_disk=busy_disk))
                )
                shutil.rmtree(place)
    result |= {
        "load": {"running": RUNNING, "waiting": WAITING, "requests": requests, "busy_disk": busy_disk},
        "runs": runs,
        "systems": {name: medians(of_runs) for name, of_runs in found.items()},
    }
    show(result, console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
