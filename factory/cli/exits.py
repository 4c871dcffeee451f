"""Exit statuses of the commands, also after Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_NO = 1  # done, and the answer is no: nothing matched, something is wrong, a tier failed

EXIT_WRONG_INPUT = 2  # what was asked for is wrong, or could not be looked at; as for a wrong option

EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended

EXITS = {
    0: "done, and nothing is wrong",
    EXIT_NO: "done, and the answer is no: nothing matched, something is wrong, a tier failed",
    EXIT_WRONG_INPUT: "wrong input, or it could not be looked at",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C",
}


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into one line and its exit status."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
