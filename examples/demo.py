"""A real vLLM server with and without kvtier, side by side: `make demo`.

A small model answers the same questions about one document four times: without kvtier; with kvtier and
nothing stored; from the pinned tier; and from NVMe after a restart. The device's own cache is empty before
each prompt. The table shows what each tier supplied and whether the generated tokens are the same. The exit
status is 0 only if all tokens are the same and each tier supplied something.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))  # the tests drive the same server with the same prompts

from demo_prompts import Talk, talk  # noqa: E402  # it imports what the line above finds
from prompts import BLOCK_TOKENS  # noqa: E402
from vllm_server import (  # noqa: E402
    Answer,
    Samples,
    Server,
    ServerFailed,
    Settings,
    has_vllm,
    tier_document,
)

CACHE = ROOT / ".cache" / "kvtier-demo"
PINNED, NVME = "pinned", "nvme"
TIERS = (PINNED, NVME)

STATUS_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Phase:
    """What the server answered in one state of the tiers, and what that moved.

    Attributes:
        supplier: the tier that has to supply something in this phase; None where none has to.
    """

    name: str
    supplier: str | None
    answers: list[Answer]
    before: Samples
    after: Samples

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        return [answer.tokens for answer in self.answers]

    @property
    def first_token_p50_s(self) -> float:
        return statistics.median(answer.first_token_s for answer in self.answers)

    def cached_tokens(self, tier: str) -> int:
        """Tokens of the prompts that a tier supplied; here a chunk is one block."""
        return int(self._change("kvtier:lookup_hits", tier)) * BLOCK_TOKENS

    def stored_bytes(self, tier: str) -> int:
        return int(self._change("kvtier:store_bytes", tier))

    def loaded_bytes(self, tier: str) -> int:
        return int(self._change("kvtier:load_bytes", tier))

    def _change(self, counter: str, tier: str) -> float:
        return self.after.total(counter, tier=tier) - self.before.total(counter, tier=tier)


class Stage:
    """Runs phases and shows how far they are: a line that moves on a terminal, else one line a step."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def start(self, settings: Settings, name: str) -> Server:
        self.show(f"starting {name}")
        return Server(settings, log=CACHE / "vllm.log")

    def run(self, server: Server, asked: Talk, name: str, *, supplier: str | None = None) -> Phase:
        self.show(f"{name}: preparing")
        before = server.drain()
        answers: list[Answer] = []
        for answer in server.stream(asked.prompts, forget=True, output_tokens=asked.output_tokens):
            answers.append(answer)
            done = f"{name}: {len(answers)} of {len(asked.prompts)} prompts"
            self._progress.update(self._task, description=done)
        self.show(f"{name}: waiting for the stores")
        return Phase(name, supplier, answers, before, server.drain())

    def stop(self, server: Server) -> None:
        self.show("stopping the server")
        server.close()

    def show(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text)


def run_phases(stage: Stage, asked: Talk) -> list[Phase]:
    """The four phases, in three runs of a server."""
    plain = Settings(model=asked.model, shape=asked.shape)
    offloading = replace(plain, tiers=tier_document(pinned="256MiB", nvme=CACHE / "nvme"))
    phases = []
    with stage.start(plain, "a server without kvtier") as server:
        phases.append(stage.run(server, asked, "without kvtier"))
        stage.stop(server)
    with stage.start(offloading, "a server with kvtier") as server:
        phases.append(stage.run(server, asked, "cold"))
        phases.append(stage.run(server, asked, "warm from pinned", supplier=PINNED))
        stage.stop(server)
    with stage.start(offloading, "the server again") as server:
        phases.append(stage.run(server, asked, "NVMe after restart", supplier=NVME))
        stage.stop(server)
    return phases


def failures(phases: Sequence[Phase]) -> list[str]:
    """What went wrong, one sentence each."""
    wrong = [f"{phase.name}: tokens differ" for phase in phases if phase.tokens != phases[0].tokens]
    cold = phases[1]
    unstored = [
        f"{cold.name}: nothing was stored in the {tier} tier" for tier in TIERS if not cold.stored_bytes(tier)
    ]
    idle = [
        f"{phase.name}: the {phase.supplier} tier supplied nothing"
        for phase in phases
        if phase.supplier and not phase.cached_tokens(phase.supplier)
    ]
    return wrong + unstored + idle


def table(phases: Sequence[Phase], asked: Talk) -> Table:
    """The phases, for people."""
    prompt_tokens = sum(map(len, asked.prompts))
    result = Table(
        title=f"{len(asked.prompts)} prompts, {prompt_tokens:,} tokens; bytes as pinned / NVMe",
        title_justify="left",
    )
    result.add_column("phase", no_wrap=True)
    headings = ("pinned\ntokens", "NVMe\ntokens", "TTFT\np50 ms", "stored\nMiB", "loaded\nMiB")
    for heading in headings:
        result.add_column(heading, justify="right")
    result.add_column("tokens\nsame")
    for phase in phases:
        same = phase.tokens == phases[0].tokens
        result.add_row(
            phase.name,
            *(f"{phase.cached_tokens(tier):,}" for tier in TIERS),
            f"{phase.first_token_p50_s * 1000:.0f}",
            " / ".join(_mib(phase.stored_bytes(tier)) for tier in TIERS),
            " / ".join(_mib(phase.loaded_bytes(tier)) for tier in TIERS),
            "-" if phase is phases[0] else "[green]yes" if same else "[bold red]NO",
        )
    return result


def conversation(phase: Phase, asked: Talk) -> Iterator[str]:
    """Questions and answers, for people."""
    if asked.text is not None:
        for question, answer in zip(asked.asked, phase.answers, strict=True):
            yield f"  {question}"
            yield f"  > {asked.text(answer.tokens)}"


def report(phases: Sequence[Phase], asked: Talk) -> dict[str, Any]:
    """The phases, for programs."""
    return {
        "about": asked.about,
        "prompts": len(asked.prompts),
        "prompt_tokens": sum(map(len, asked.prompts)),
        "failures": failures(phases),
        "phases": [
            {
                "name": phase.name,
                "cached_tokens": {tier: phase.cached_tokens(tier) for tier in TIERS},
                "stored_bytes": {tier: phase.stored_bytes(tier) for tier in TIERS},
                "loaded_bytes": {tier: phase.loaded_bytes(tier) for tier in TIERS},
                "first_token_s": [answer.first_token_s for answer in phase.answers],
                "first_token_p50_s": phase.first_token_p50_s,
                "tokens_identical": phase.tokens == phases[0].tokens,
            }
            for phase in phases
        ],
    }


class Busy(Exception):
    """Another demo runs in the same directory."""


@contextmanager
def empty_cache() -> Iterator[None]:
    """Delete what earlier demos stored, and keep other demos away: they would share each other's chunks."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another demo runs in {CACHE}") from error
        if (CACHE / "nvme").exists():
            shutil.rmtree(CACHE / "nvme")
        (CACHE / "vllm.log").unlink(missing_ok=True)
        yield


def demonstrate(console: Console, json_file: Path | None) -> int:
    """Run it all; returns the exit status."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        stage = Stage(console, progress)
        asked = talk(CACHE, stage.show)
        phases = run_phases(stage, asked)
    told = "" if asked.text is None else "; the answers after the restart:"
    console.print(f"{asked.about}{told}", highlight=False)
    for line in conversation(phases[-1], asked):
        console.print(line, markup=False, highlight=False)
    console.print(table(phases, asked))
    for failure in failures(phases):
        console.print(f"[bold red]{failure}")
    if json_file is not None:
        json_file.write_text(json.dumps(report(phases, asked), indent=2) + "\n")
    return 1 if failures(phases) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A real vLLM server with and without kvtier, side by side.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    arguments = parser.parse_args()
    console = Console()
    if not has_vllm():
        console.print("no vLLM is installed; `make install` installs one")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the servers as Ctrl-C does
    try:
        with empty_cache():
            status = demonstrate(console, arguments.json)
    except (ServerFailed, Busy) as failure:
        console.print(str(failure), markup=False, highlight=False)
        status = 1
    except KeyboardInterrupt:
        console.print("interrupted; the servers have ended")
        status = STATUS_INTERRUPTED
    console.print(f"vLLM's own messages: {CACHE / 'vllm.log'}", highlight=False, soft_wrap=True)
    return status


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
