"""What commands print: aligned pairs, JSON in one envelope, short digests, progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGEST_DIGITS = 12  # of a namespace's digest; enough for `rm --namespace`

SHAPES_VERSION = 1  # of all JSON that commands print; raised when a key goes or changes its meaning

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def emit(command: str, found: DataclassInstance | Mapping[str, object]) -> None:
    """Print what a command found as one JSON object that says which command printed it, in which shape."""
    document = found if isinstance(found, Mapping) else asdict(found)
    typer.echo(json.dumps({"command": command, "version": SHAPES_VERSION, **document}, indent=2))


def print_pairs(*pairs: tuple[str, str]) -> None:
    """Print one name and its value a line, the values aligned."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}".rstrip())


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; call it with the done and the total count."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
