"""Exit statuses of the commands, also after Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_FAILED = 1

EXIT_WRONG_INPUT = 2  # as for a wrong option

EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into one line and its exit status."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
