"""`kvtier bench`: measures a drive with kvtier's own access pattern, and compares every byte."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import TierUnavailable
from ..exits import EXIT_NO, EXIT_WRONG_INPUT
from ..output import AsJson, emit, progress

if TYPE_CHECKING:
    from ....tiers.nvme.admin.drill import Drilled, Phase
    from .shapes import Bench, MeasuredDrive, MeasuredPhase, MeasuredRun

CHUNK_SIZES = (256 << 10, 1 << 20, 4 << 20)
FAST_ENOUGH = 0.8  # of the best rate: a smaller chunk that reaches it is the better one
RESERVE_SHARE = 10  # a tenth of the file system, as in a document that says nothing
TOKEN_BYTES = 128 << 10  # of a model of eight billion parameters
PREFIX_TOKENS = 32_768
DEADLINE_S = 10  # what a document has by default
DEADLINE_FACTOR = 2  # of the time that a whole prefix takes on a drive with nothing else to do


@dataclass(frozen=True, slots=True)
class Drive:
    """One drive to measure."""

    path: Path
    reserve_bytes: int


def bench(
    path: Annotated[
        Path,
        typer.Argument(
            help="The directory of an nvme tier, or a tier-config document; - is standard input.",
            show_default=False,
        ),
    ],
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="How long to measure each drive.")] = 10.0,
    chunk_bytes: Annotated[
        str | None,
        typer.Option(help="Size of one chunk, such as 2MiB; by default three sizes.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a drive as kvtier uses it, and compare every byte.

    It works in a directory of its own beside PATH, named .kvtier-bench-*, which is gone at the end. For each
    size of chunk it writes 2 GiB at most. A store at PATH is left alone. What was measured is remembered for
    `kvtier explain`.

    Exit status: 0 if all bytes were right, 1 if some were wrong or a call failed, 2 if it could not measure.
    """
    from ...sizes import parse_chunk_bytes

    sizes = CHUNK_SIZES if chunk_bytes is None else (parse_chunk_bytes(chunk_bytes),)
    found: dict[Path, list[Drilled]] = {}
    for drive in _drives(path):
        try:
            found[drive.path] = _measured(drive, sizes, seconds)
        except TierUnavailable as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_WRONG_INPUT) from None
        _remember(drive.path, found[drive.path])
        if not as_json:
            _print(drive.path, found[drive.path])
    if as_json:
        emit("bench", _shape(found))
    if any(run.wrong_chunks or run.failed for runs in found.values() for run in runs):
        raise typer.Exit(EXIT_NO)


def _drives(path: Path) -> list[Drive]:
    from ....tiers import ConfigError
    from ....tiers.nvme.volume.probe import existing
    from ..input import is_document, read_json

    if not is_document(path):
        if path.exists() and not path.is_dir():
            raise ConfigError("", f"{path} is neither a directory nor a document")
        status = os.statvfs(existing(path.absolute()))
        return [Drive(path.absolute(), status.f_blocks * status.f_frsize // RESERVE_SHARE)]
    from ...base import PART_ALIGNMENT_BYTES
    from ...config import load_config, resolve_config
    from ...entries import NvmeConfig

    config = resolve_config(load_config(read_json(path)), chunk_bytes=PART_ALIGNMENT_BYTES)
    drives = [drive for tier in config.tiers if isinstance(tier, NvmeConfig) for drive in tier.drives]
    if not drives:
        raise ConfigError("tiers", "there is no nvme tier in it to measure")
    return [Drive(drive.path, drive.reserve_bytes) for drive in drives]


def _measured(drive: Drive, sizes: Sequence[int], seconds: float) -> list[Drilled]:
    """Drill with each size of chunk in turn."""
    import asyncio

    from ....tiers.nvme.admin.drill import capacity_for, drill, place_beside
    from ....tiers.nvme.io.files import free_bytes
    from ....tiers.nvme.volume.probe import existing

    _say_what_disturbs(drive.path)
    each_s, found = seconds / len(sizes), []
    with place_beside(drive.path) as place, progress(f"measuring {drive.path}") as bar:
        for i, size in enumerate(sizes):
            capacity_bytes = capacity_for(free_bytes(existing(drive.path)), drive.reserve_bytes)

            def advance(passed_s: float, before_s: float = i * each_s) -> None:
                bar(round(before_s + passed_s), round(seconds))

            run = drill(
                place / f"{size}",
                chunk_bytes=size,
                capacity_bytes=capacity_bytes,
                seconds=each_s,
                progress=advance,
            )
            found.append(asyncio.run(run))
    return found


def _say_what_disturbs(path: Path) -> None:
    from ....tiers.nvme.io.files import Files
    from ....tiers.nvme.store.mark import read_mark

    try:
        mark = read_mark(path)
    except OSError:
        return
    if mark is not None and not mark.closed and mark.boot == Files().boot_id():
        typer.echo(f"{path} is in use: what follows is what its servers leave of the drive", err=True)


def _remember(path: Path, found: Sequence[Drilled]) -> None:
    from ...sizing.measured import Measured, remember

    best = _recommended(found)
    if best.is_direct and best.loaded.size_bytes:
        stored, loaded = best.stored.bytes_per_s, best.loaded.bytes_per_s
        remember(path, Measured(stored, loaded, best.chunk_bytes, int(time.time())))


def _recommended(found: Sequence[Drilled]) -> Drilled:
    """The run with the smallest chunks that is about as fast as any."""
    best = max(run.loaded.bytes_per_s for run in found)
    return next(run for run in found if run.loaded.bytes_per_s >= FAST_ENOUGH * best)


def _print(path: Path, found: Sequence[Drilled]) -> None:
    from ...text.units import format_size

    typer.echo(str(path))
    rows = [("chunk", "store MiB/s", "p50/p99 ms", "load MiB/s", "p50/p99 ms", "CPU s/GiB", "flush ms")]
    for run in found:
        loads = _figures(run.loaded) if run.is_direct else ("-", "-")
        cpu = f"{run.stored.cpu_s_per_gib:.2f}/{run.loaded.cpu_s_per_gib:.2f}"
        size, flush = format_size(run.chunk_bytes), f"{1000 * run.flush_s:.0f}"
        rows.append((size, *_figures(run.stored), *loads, cpu, flush))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(f"  {'  '.join(cells)}")
    for line in _conclusions(found):
        typer.echo(f"  {line}")


def _figures(phase: Phase) -> tuple[str, str]:
    rate = f"{phase.bytes_per_s / (1 << 20):,.0f}"
    return rate, f"{1000 * phase.percentile_s(50):.1f}/{1000 * phase.percentile_s(99):.1f}"


def _conclusions(found: Sequence[Drilled]) -> Iterator[str]:
    from ...text.units import format_size

    compared, wrong = (
        sum(getattr(run, name) for run in found) for name in ("compared_chunks", "wrong_chunks")
    )
    yield f"{compared:,} chunks compared, {wrong} wrong"
    for run in found:
        for reason, count in run.failed.items():
            yield f"{count} chunks of {format_size(run.chunk_bytes)} failed: {reason}"
    best = _recommended(found)
    if not best.is_direct:
        yield "no figures of loads: without direct I/O they come from the page cache"
        return
    rate = best.loaded.bytes_per_s
    if not rate:
        return
    if len(found) > 1:
        yield f"chunks of {format_size(best.chunk_bytes)} are large enough for this drive"
    yield (
        f"it supplies {rate / TOKEN_BYTES:,.0f} tokens/s of {format_size(TOKEN_BYTES)} each; to a server "
        "that computes more, loading gains nothing"
    )
    prefix_s = PREFIX_TOKENS * TOKEN_BYTES / rate
    yield f"load_deadline_s: {_deadline_s(prefix_s)}, as a prefix of 4GiB takes {prefix_s:.1f} s"


def _deadline_s(prefix_s: float) -> int:
    return max(DEADLINE_S, -(-int(DEADLINE_FACTOR * prefix_s + 1) // 5) * 5)


def _shape(found: Mapping[Path, Sequence[Drilled]]) -> Bench:
    from .shapes import Bench

    return Bench(tuple(_drive_shape(path, runs) for path, runs in found.items()))


def _drive_shape(path: Path, found: Sequence[Drilled]) -> MeasuredDrive:
    from .shapes import MeasuredDrive

    best = _recommended(found)
    rate = best.loaded.bytes_per_s if best.is_direct else 0.0
    return MeasuredDrive(
        path=str(path),
        runs=tuple(map(_run_shape, found)),
        recommended_chunk_bytes=best.chunk_bytes if rate else None,
        recommended_load_deadline_s=_deadline_s(PREFIX_TOKENS * TOKEN_BYTES / rate) if rate else None,
    )


def _run_shape(run: Drilled) -> MeasuredRun:
    from .shapes import MeasuredRun

    return MeasuredRun(
        chunk_bytes=run.chunk_bytes,
        stored=_phase_shape(run.stored),
        loaded=_phase_shape(run.loaded) if run.is_direct else None,
        flush_s=run.flush_s,
        is_direct=run.is_direct,
        compared_chunks=run.compared_chunks,
        wrong_chunks=run.wrong_chunks,
        failed=run.failed,
    )


def _phase_shape(phase: Phase) -> MeasuredPhase:
    from .shapes import MeasuredPhase

    return MeasuredPhase(
        size_bytes=phase.size_bytes,
        bytes_per_s=phase.bytes_per_s,
        p50_s=phase.percentile_s(50),
        p99_s=phase.percentile_s(99),
        cpu_s_per_gib=phase.cpu_s_per_gib,
    )
