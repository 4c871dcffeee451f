"""What commands print: aligned pairs, tables, records for pipes, JSON in one envelope, progress bars."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGEST_DIGITS = 12  # of a namespace's digest; enough for `rm --namespace`

SHAPES_VERSION = 1  # of all JSON that commands print; raised when a key goes or changes its meaning

LAST_COLUMN_MIN = 8  # characters of a label that still say which it is, on however narrow a terminal

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def emit(command: str, found: DataclassInstance | Mapping[str, object]) -> None:
    """Print what a command found as one JSON object that says which command printed it, in which shape.

    `shapes.py` has the shape of each command.
    """
    document = found if isinstance(found, Mapping) else asdict(found)
    typer.echo(json.dumps({"command": command, "version": SHAPES_VERSION, **document}, indent=2))


def is_terminal() -> bool:
    """Whether people read what is printed, and not a program."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_pairs(*pairs: tuple[str, str]) -> None:
    """Print one name and its value a line, the values aligned."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {one_line(value)}".rstrip())


def print_records(records: Iterable[Iterable[object]]) -> None:
    """Print one record a line for a program, its fields apart by tabs."""
    for record in records:
        typer.echo("\t".join(one_line(str(field)) for field in record))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people, one line a row, however narrow their terminal: its last column is cut."""
    *columns, _ = zip(headings, *rows, strict=True)
    widths = [max(map(_cells, column)) for column in columns]
    left = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths)
    for *cells, last in (headings, *rows):
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        typer.echo("  ".join([*aligned, cut(one_line(last), max(LAST_COLUMN_MIN, left))]).rstrip())


def one_line(text: str) -> str:
    """A text without what would end the line or move the cursor, such as a foreign name may have."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def safe_lines(text: str) -> str:
    """A text of some lines, each without what would move the cursor."""
    return "\n".join(map(one_line, text.split("\n")))


def cut(text: str, width: int) -> str:
    """A text of at most so many cells, cut in its middle: both ends of a path tell more than that."""
    if _cells(text) <= width:
        return text
    head, tail = "", ""
    for near, far in zip(text, reversed(text), strict=True):
        if _cells(head) + _cells(tail) + _cells(near) + 1 > width:
            break
        head += near
        if _cells(head) + _cells(tail) + _cells(far) + 1 > width:
            break
        tail = far + tail
    return f"{head}…{tail}"


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; call it with the done and the total count."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
