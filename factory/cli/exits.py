"""Exit statuses of the commands, also after Ctrl-C, and where nobody reads what they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

EXIT_NO = 1  # done, and the answer is no: nothing matched, something is wrong, a tier failed

EXIT_WRONG_INPUT = 2  # what was asked for is wrong, or could not be looked at; as for a wrong option

EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended

EXIT_UNREAD = 141  # what a shell reports for a command whose reader left

EXITS = {
    0: "done, and nothing is wrong",
    EXIT_NO: "done, and the answer is no: nothing matched, something is wrong, a tier failed",
    EXIT_WRONG_INPUT: "wrong input, or it could not be looked at",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C",
    EXIT_UNREAD: "the reader of a pipe left",
}


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into one line and its exit status, and end in silence where the reader of a pipe left."""
    try:
        yield
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error, typer.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # the input ended at a question
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        drop_output()
        raise typer.Exit(EXIT_UNREAD) from None


def drop_output() -> None:
    """Have what is still to be printed go nowhere: the interpreter would complain of it at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
