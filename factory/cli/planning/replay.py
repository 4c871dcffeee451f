"""`kvtier replay`: replays a request trace through a chain of tiers, without data."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..output import AsJson, emit

if TYPE_CHECKING:
    from ....engine.replay.first_tokens import Speeds
    from ....engine.replay.replay import ReplayFigures
    from ....engine.replay.trace import Trace
    from .compare import Savings
    from .replay_plan import Ids, ReplayPlan
    from .sweep import Sweep

STEP_TOKENS = 2048  # what vLLM computes in one step by default


def replay(
    trace: Annotated[
        Path,
        typer.Argument(help="Requests as JSON lines, plain or gzipped; - for a pipe.", show_default=False),
    ],
    config: Annotated[Path, typer.Option(help="The tier-config document.", show_default=False)],
    tokens_per_id: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens that one id stands for; by default the trace's, or 512.", show_default=False
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-chunk",
            min=1,
            help="Tokens that one chunk of the server stands for; by default the trace's, or those of an id.",
            show_default=False,
        ),
    ] = None,
    chunk_bytes: Annotated[
        str | None,
        typer.Option(
            help="Size of one chunk; by default the trace's, or 128KiB a token.", show_default=False
        ),
    ] = None,
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
            help="How fast the server computes prompts. With --load-bytes-per-s, what it computes sooner "
            "than a tier below loads it is not loaded.",
            show_default=False,
        ),
    ] = None,
    load_bytes_per_s: Annotated[
        str | None,
        typer.Option(help="How fast tiers below the pinned one load, for example 5GB.", show_default=False),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="TIER", help="Also replay with an eighth to eight times its capacity.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also replay with twice each tier, and with other policies."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Replays at the same time; by default one a core.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Plot the sweep, of the pinned tier unless --sweep names another, as a PNG.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Replay a request trace through the tiers of a document.

    Prints the hit rate in total and by tier, and what it takes: promotions, evictions, bytes written, chunks
    dropped. Moves no data, opens no tier and changes nothing on the machine.
    """
    asked = _Asked(
        sweep or ("pinned" if plot_file else None), compare, jobs or len(os.sched_getaffinity(0)), as_json
    )
    read, plan = _planned(
        trace,
        config,
        lambda found: _ids(found, tokens_per_id, chunk_tokens, chunk_bytes),
        step_tokens,
        lambda tokens: _speeds(tokens, prefill_tokens_per_s, load_bytes_per_s, alone=compare),
    )
    _replay(read, plan, asked, prefill_tokens_per_s, trace, config, plot_file)


class _Asked(NamedTuple):
    """What was asked for beside one replay."""

    sweep: str | None
    compare: bool
    jobs: int
    as_json: bool


def _ids(read: Trace, tokens_per_id: int | None, chunk_tokens: int | None, chunk_bytes: str | None) -> Ids:
    from .replay_plan import ids_of

    return ids_of(read.sizes, tokens_per_id=tokens_per_id, chunk_tokens=chunk_tokens, chunk_bytes=chunk_bytes)


def _speeds(
    id_tokens: int, prefill_tokens_per_s: float | None, load_bytes_per_s: str | None, *, alone: bool
) -> Speeds | None:
    """The speeds that are given: both, or none, or where the other one is of use `alone`, the first.

    Raises:
        ConfigError: one is missing, or not above zero; the message names it.
    """
    from ....engine.replay.first_tokens import Speeds
    from ....tiers import ConfigError
    from ...text.units import parse_option

    if prefill_tokens_per_s is None:
        if load_bytes_per_s is None:
            return None
        raise ConfigError("--prefill-tokens-per-s", "missing: it goes together with --load-bytes-per-s")
    if not 0 < prefill_tokens_per_s < math.inf:
        raise ConfigError(
            "--prefill-tokens-per-s", f"should be a number above zero, not {prefill_tokens_per_s}"
        )
    if load_bytes_per_s is None:
        if alone:
            return None
        raise ConfigError(
            "--load-bytes-per-s",
            "missing: it goes together with --prefill-tokens-per-s, or that with --compare",
        )
    bytes_per_s = parse_option("--load-bytes-per-s", load_bytes_per_s)
    if not bytes_per_s:
        raise ConfigError("--load-bytes-per-s", "should be above zero")
    return Speeds(id_tokens, prefill_tokens_per_s, bytes_per_s)


def _planned(
    trace: Path,
    config: Path,
    ids_of: Callable[[Trace], Ids],
    step_tokens: int,
    speeds_of: Callable[[int], Speeds | None],
) -> tuple[Trace, ReplayPlan]:
    from ....engine.replay.trace import read_trace
    from ...config import parse_config
    from ..input import read_json
    from .replay_plan import plan_replay

    document = parse_config(read_json(config))
    read = read_trace(trace)
    ids = ids_of(read)
    step_keys = max(1, step_tokens // ids.tokens) if step_tokens else None
    return read, plan_replay(document, ids=ids, step_keys=step_keys, speeds=speeds_of(ids.tokens))


def _replay(
    read: Trace,
    plan: ReplayPlan,
    asked: _Asked,
    prefill_tokens_per_s: float | None,
    trace: Path,
    config: Path,
    plot_file: Path | None,
) -> None:
    from .curve import plot, require_plotting

    if plot_file is not None:
        require_plotting(plot_file)
    found = _found(read, plan, asked, prefill_tokens_per_s)
    _print(found, plan, read, as_json=asked.as_json)
    if plot_file is not None and found.sweep is not None:
        unlimited_percent = found.unlimited_percent
        plot(
            found.sweep,
            plot_file,
            trace=trace.name,
            document=config.name,
            unlimited_percent=unlimited_percent,
        )


class _Found(NamedTuple):
    """All answers."""

    figures: ReplayFigures
    unlimited_percent: float
    sweep: Sweep | None
    savings: list[Savings]


def _found(read: Trace, plan: ReplayPlan, asked: _Asked, prefill_tokens_per_s: float | None) -> _Found:
    from ....engine.replay.replay import distinct_count, unlimited_hit_percent
    from .compare import alternatives, savings
    from .sweep import Sweep, points, refuse_unknown

    swept: dict[int, ReplayPlan] = {}
    if asked.sweep is not None:
        refuse_unknown(plan, asked.sweep)
        swept = points(plan, asked.sweep, distinct_count(read.requests) * plan.key_bytes)
    others = alternatives(plan) if asked.compare else []
    figures = _all_figures(read, [plan, *swept.values(), *(one.plan for one in others)], asked)
    found_sweep = None
    if asked.sweep is not None:
        sizes_bytes, own_bytes = tuple(swept), plan.capacities_bytes[asked.sweep]
        found = tuple(figures[one] for one in swept.values())
        found_sweep = Sweep(asked.sweep, sizes_bytes, found, own_bytes, read.span_s)
    found_savings = [
        savings(
            one.name,
            figures[one.plan],
            chunk_tokens=plan.ids.tokens / plan.ids.chunks,
            span_s=read.span_s,
            prefill_tokens_per_s=prefill_tokens_per_s,
        )
        for one in others
    ]
    return _Found(figures[plan], unlimited_hit_percent(read.requests), found_sweep, found_savings)


def _print(found: _Found, plan: ReplayPlan, read: Trace, *, as_json: bool) -> None:
    from . import compare, replay_output, sweep

    if as_json:
        document = replay_output.as_json(found.figures, plan, found.unlimited_percent, read)
        document["sweep"] = None if found.sweep is None else sweep.as_json(found.sweep)
        document["alternatives"] = compare.as_json(found.savings)
        emit("replay", document)
        return
    parts = [replay_output.as_text(found.figures, plan, found.unlimited_percent, read)]
    if found.sweep is not None:
        parts.append(sweep.as_text(found.sweep))
    if found.savings:
        parts.append(compare.as_text(found.savings))
    typer.echo("\n\n".join(parts))


def _all_figures(read: Trace, plans: list[ReplayPlan], asked: _Asked) -> dict[ReplayPlan, ReplayFigures]:
    """The figures of every plan; of equal ones, one replay."""
    from ....engine.replay.parallel import replay_all

    different = list(dict.fromkeys(plans))
    with _progress(len(read.requests) * len(different), shown=not asked.as_json) as advance:
        found = replay_all(read.requests, different, advance, jobs=asked.jobs)
    return dict(zip(different, found, strict=True))


@contextlib.contextmanager
def _progress(requests_count: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar where the error output is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("replaying", total=requests_count)
        yield lambda served_count: bar.advance(task, served_count)
