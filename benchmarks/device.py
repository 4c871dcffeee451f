"""Copies between a device and slots: whether every bit comes back, and what they cost.

    python3 benchmarks/device.py [--device cuda|cpu] [--quick] [--json FILE]   (--help lists more)

Runs from the checkout, with torch and numpy alone; nothing is installed. On a GPU:

- round trips of all layouts and dtypes behind a busy compute stream;
- an OffloadEngine used from several threads at once, while its slots are still being page-locked;
- bandwidth by page size, each way and both at once, beside one large memcpy, copies page by page, a
  gather on the device, slots that are not page-locked, and
  vLLM's `swap_blocks_batch` where vLLM is installed; everybody in turn, medians;
- how much longer matrix products take meanwhile;
- host time to submit a transfer of 64 blocks of 32 layers.

Without one: the round trips in plain memory, and the time to plan that transfer.
Exit status: 0, or 1 if a round trip differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import checkout
import device_rates
import engine_trips
import numpy as np
import round_trips
import torch
from device_rates import KIB, Rate, Slowdown, SubmitCost
from round_trips import Verdict

from kvtier.tiers.device.cuda import BatchedMemcpy

TRIPS = 6  # of each case
QUICK_TRIPS = 2
ENGINE_ROUNDS = 400  # of each of its threads
QUICK_ENGINE_ROUNDS = 30
RUNS = 7
QUICK_RUNS = 2


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU was found: --device cpu checks what can be checked without one", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"about": about(device)}
    print(", ".join(f"{name} {value}" for name, value in result["about"].items() if value is not None))

    good = True
    if options.run_by_run:
        BatchedMemcpy.find = staticmethod(lambda: None)  # type: ignore[method-assign]
    if not options.figures_only:
        found, good = compared(device, quick=options.quick)
        result |= found
    if not options.round_trips_only:
        result |= measured(device, quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


def compared(device: torch.device, *, quick: bool) -> tuple[dict[str, Any], bool]:
    """Every comparison of bytes, shown and as a part of the JSON document; and whether all are equal."""
    verdicts = trips(device, QUICK_TRIPS if quick else TRIPS)
    show_trips(verdicts, device)
    engine = engine_trips.judge(device, QUICK_ENGINE_ROUNDS if quick else ENGINE_ROUNDS)
    print(
        f"engine from {engine_trips.THREADS} threads: {engine.loaded} chunks back, {engine.loaded_early} "
        f"before all slots were page-locked, {engine.wrong} wrong"
    )
    good = all(verdict.good for verdict in (*verdicts, engine))
    return {"round_trips": summary_of(verdicts), "engine": asdict(engine)}, good


def trips(device: torch.device, count: int) -> list[Verdict]:
    stream = round_trips.ComputeStream(device)
    return [
        round_trips.judge(case, device, stream, count, seed) for seed, case in enumerate(round_trips.cases())
    ]


def summary_of(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What was tried, and every case that was not right."""
    return {
        "cases": len(verdicts),
        "trips": sum(verdict.trips for verdict in verdicts),
        "submits_onto_a_busy_stream": sum(verdict.busy for verdict in verdicts),
        "layouts": [layout.name for layout in round_trips.LAYOUTS],
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in round_trips.DTYPES],
        "wrong": [asdict(verdict) for verdict in verdicts if not verdict.good],
    }


def measured(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Everything that is a figure; shown, and returned for the JSON document."""
    result: dict[str, Any] = {}
    if device.type == "cuda":
        runs = QUICK_RUNS if quick else RUNS
        sizes = device_rates.QUICK_PAGE_SIZES if quick else device_rates.PAGE_SIZES
        rates = device_rates.rates(device, sizes, runs)
        show_rates(rates)
        slowdowns = device_rates.slowdowns(device, runs)
        show_slowdowns(slowdowns)
        result = {
            "runs": runs,
            "bandwidth": [asdict(rate) for rate in rates],
            "slowdown": [asdict(slowdown) for slowdown in slowdowns],
        }
    costs = device_rates.submit_costs(device)
    show_costs(costs)
    return result | {
        "submit_promise_us": device_rates.SUBMIT_PROMISE_US,
        "submit": [asdict(cost) | {"ok": cost.is_within_promise} for cost in costs],
    }


def about(device: torch.device) -> dict[str, str | int | None]:
    """When, with what and on what."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(device) if on_gpu else "plain memory",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "kvtier": tomllib.loads((checkout.ROOT / "pyproject.toml").read_text())["project"]["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "hip": torch.version.hip if on_gpu else None,
        "copies": copies_in_use(device) if on_gpu else None,
        "vllm": installed("vllm"),
    }


def copies_in_use(device: torch.device) -> str:
    """What carries the copies on this driver."""
    return "cuMemcpyBatchAsync" if BatchedMemcpy.find() is not None else "one memcpy a run"


def installed(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def show_trips(verdicts: Sequence[Verdict], device: torch.device) -> None:
    found = summary_of(verdicts)
    wrong = [verdict for verdict in verdicts if not verdict.good]
    print(f"\nround trips: {found['trips']} in {found['cases']} cases, {len(wrong)} cases differ")
    if device.type == "cuda":
        busy, submits = found["submits_onto_a_busy_stream"], 2 * found["trips"]
        print(f"the compute stream was still busy after {busy} of {submits} submits")
    show_table(
        ("layout", "dtype", "blocks/chunk", "stored", "loaded", "wrong bytes", "error"),
        [
            (v.layout, v.dtype, v.blocks_per_chunk, v.stored, v.loaded, v.wrong_bytes, v.error or "")
            for v in wrong
        ],
    )


def show_rates(rates: Sequence[Rate]) -> None:
    print("\nbandwidth: GB/s, and its ratio to one memcpy of as many bytes in the same runs")
    show_table(
        ("page", "ways", "mover", "GB/s", "of memcpy"),
        [
            (
                f"{rate.page_bytes // KIB} KiB",
                rate.ways,
                rate.mover,
                f"{rate.gb_per_s:.2f}",
                f"{rate.of_memcpy:.2f}",
            )
            for rate in rates
        ],
    )


def show_slowdowns(slowdowns: Sequence[Slowdown]) -> None:
    print("\nmatrix products beside transfers: time, as a multiple of the time alone")
    show_table(
        ("ways", "mover", "time", "GB/s meanwhile"),
        [(each.ways, each.mover, f"{each.ratio:.3f}x", f"{each.moved_gb_per_s:.2f}") for each in slowdowns],
    )


def show_costs(costs: Sequence[SubmitCost]) -> None:
    blocks, layers = device_rates.SUBMIT_BLOCKS, device_rates.SUBMIT_LAYERS
    promise_us = device_rates.SUBMIT_PROMISE_US
    print(f"\nhost time per transfer of {blocks} blocks of {layers} layers")
    show_table(
        ("what", "runs", "median us", "p99 us", f"promised {promise_us:.0f} us"),
        [
            (
                cost.what,
                cost.runs_count,
                f"{cost.median_us:.1f}",
                f"{cost.p99_us:.1f}",
                "ok" if cost.is_within_promise else "over",
            )
            for cost in costs
        ],
    )


def show_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns; nothing where there are no rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [list(titles), *cells] if cells else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda also means ROCm; default: a GPU where there is one",
    )
    parser.add_argument("--quick", action="store_true", help="a first look: few trips, sizes and runs")
    parser.add_argument("--round-trips-only", action="store_true", help="no figures")
    parser.add_argument("--figures-only", action="store_true", help="no round trips")
    parser.add_argument("--run-by-run", action="store_true", help="as with a driver without the batched copy")
    parser.add_argument("--json", type=Path, help="write all of it here, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
