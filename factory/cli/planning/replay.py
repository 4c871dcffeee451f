"""`kvtier replay`: replays a request trace through a chain of tiers, without data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output import AsJson, emit

if TYPE_CHECKING:
    from ....engine.replay.first_tokens import Speeds
    from ....engine.replay.trace import Requests
    from .replay_output import CurvePoint
    from .replay_plan import ReplayPlan

# What one id of a trace stands for, 512 tokens, of Llama 3.1 8B in bf16: 32 layers, 8 KV heads of 128.
CHUNK_SIZE = "64MiB"

CHUNK_TOKENS = 512
STEP_TOKENS = 2048  # what vLLM computes in one step by default

CURVE_DOUBLINGS = 3  # to either side of the configured capacity, for the plot


def replay(
    trace: Annotated[
        Path, typer.Argument(help="Requests as JSON lines, plain or gzipped.", show_default=False)
    ],
    config: Annotated[Path, typer.Option(help="The tier-config document.", show_default=False)],
    chunk_bytes: Annotated[
        str,
        typer.Option(help="Size of the chunk that one id of the trace stands for."),
    ] = CHUNK_SIZE,
    chunk_tokens: Annotated[
        int, typer.Option("--tokens-per-chunk", min=1, help="Tokens that one id of the trace stands for.")
    ] = CHUNK_TOKENS,
    step_tokens: Annotated[
        int,
        typer.Option(
            "--tokens-per-step",
            min=0,
            help="Tokens of a prompt that the server computes, and stores, in one step; 0 for whole prompts.",
        ),
    ] = STEP_TOKENS,
    prefill_tokens_per_s: Annotated[
        float | None,
        typer.Option(
            help="How fast the server computes prompts: what it computes sooner than a tier below loads it "
            "is not loaded. Needs --load-bytes-per-s.",
            show_default=False,
        ),
    ] = None,
    load_bytes_per_s: Annotated[
        str | None,
        typer.Option(help="How fast tiers below the pinned one load, for example 5GB.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Also replay at other pinned capacities, and plot the hit rates as a PNG.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Replay a request trace through the tiers of a document.

    Prints the hit rate in total and by tier, and what it takes: promotions, evictions, bytes written, chunks
    dropped. Moves no data, opens no tier and changes nothing on the machine.
    """
    step_chunks = max(1, step_tokens // chunk_tokens) if step_tokens else None
    speeds = _speeds(chunk_tokens, prefill_tokens_per_s, load_bytes_per_s)
    _replay(trace, config, chunk_bytes, step_chunks, speeds, as_json, plot_file)


def _speeds(
    chunk_tokens: int, prefill_tokens_per_s: float | None, load_bytes_per_s: str | None
) -> Speeds | None:
    """The speeds that are given: both or none.

    Raises:
        ConfigError: one is missing, or not above zero; the message names it.
    """
    from ....engine.replay.first_tokens import Speeds
    from ....tiers import ConfigError
    from ...text.units import parse_option

    if prefill_tokens_per_s is None and load_bytes_per_s is None:
        return None
    if load_bytes_per_s is None:
        raise ConfigError("--load-bytes-per-s", "missing: it goes together with --prefill-tokens-per-s")
    if prefill_tokens_per_s is None:
        raise ConfigError("--prefill-tokens-per-s", "missing: it goes together with --load-bytes-per-s")
    if not 0 < prefill_tokens_per_s < math.inf:
        raise ConfigError(
            "--prefill-tokens-per-s", f"should be a number above zero, not {prefill_tokens_per_s}"
        )
    bytes_per_s = parse_option("--load-bytes-per-s", load_bytes_per_s)
    if not bytes_per_s:
        raise ConfigError("--load-bytes-per-s", "should be above zero")
    return Speeds(chunk_tokens, prefill_tokens_per_s, bytes_per_s)


def _replay(
    trace: Path,
    config: Path,
    chunk_bytes: str,
    step_chunks: int | None,
    speeds: Speeds | None,
    as_json: bool,
    plot_file: Path | None,
) -> None:
    from ....engine.replay.replay import unlimited_hit_percent
    from ....engine.replay.trace import read_trace
    from ...config import load_config
    from ...sizes import parse_chunk_bytes
    from .replay_output import as_json as to_json
    from .replay_output import as_text, plot, require_plotting
    from .replay_plan import plan_replay

    plan = plan_replay(
        load_config(config),
        chunk_bytes=parse_chunk_bytes(chunk_bytes),
        step_chunks=step_chunks,
        speeds=speeds,
    )
    if plot_file is not None:
        require_plotting(plot_file)
    requests = read_trace(trace)
    unlimited_percent = unlimited_hit_percent(requests)
    counts = _curve_counts(plan.slots_count, requests) if plot_file else [plan.slots_count]
    with _progress(len(requests) * len(counts), shown=not as_json) as advance:
        curve = [_point(plan.resized(count), requests, advance) for count in counts]
    figures = next(point.figures for point in curve if point.slots_count == plan.slots_count)
    if as_json:
        emit("replay", to_json(figures, plan, unlimited_percent))
    else:
        typer.echo(as_text(figures, plan, unlimited_percent))
    if plot_file is not None:
        plot(curve, plan, unlimited_percent, plot_file)


def _point(plan: ReplayPlan, requests: Requests, advance: Callable[[int], None]) -> CurvePoint:
    from ....engine.replay.replay import replay as run
    from .replay_output import CurvePoint

    figures = run(
        requests,
        plan.pinned(),
        plan.lower(),
        advance,
        step_chunks=plan.step_chunks,
        speeds=plan.speeds,
    )
    return CurvePoint(plan.slots_count, figures)


def _curve_counts(slots_count: int, requests: Requests) -> list[int]:
    """Pinned capacities to replay at, doubling, none far above what holds every chunk of the trace."""
    from ....engine.replay.replay import distinct_count

    smaller = {slots_count >> i for i in range(CURVE_DOUBLINGS + 1)} - {0}
    larger = {slots_count << i for i in range(1, CURVE_DOUBLINGS + 1)}
    useful_max = 2 * distinct_count(requests)
    return sorted(smaller.union(count for count in larger if count < useful_max))


@contextlib.contextmanager
def _progress(requests_count: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where the error output is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("replaying", total=requests_count)
        yield lambda served_count: bar.advance(task, served_count)
