"""The command line: `kvtier`.

Each command is a function in a file of its own, listed below in COMMANDS.

A command imports what it needs inside its functions, so that `kvtier --help` stays quick, and lets a
`KvtierError` pass: `main` prints it and chooses the exit status.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from ...tiers import ConfigError, KvtierError
from .exits import EXIT_NO, EXIT_WRONG_INPUT
from .planning.check import check
from .planning.replay import replay
from .schema import schema
from .store.du import du
from .store.export import export
from .store.fsck import fsck
from .store.import_ import import_
from .store.ls import ls
from .store.rm import rm

COMMANDS = (schema, check, replay, du, ls, rm, fsck, export, import_)

app = typer.Typer(
    name="kvtier",
    help="Check, inspect and repair kvtier's tiers for an LLM server's KV cache.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for help alone doubles the time it takes
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed_version

        typer.echo(f"kvtier {installed_version('kvtier-core')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)  # `import` is a word of Python's


def main() -> None:
    """Run the command line and exit: 0, 1 when the work failed, 2 when what was asked for is wrong."""
    try:
        app()
    except KvtierError as error:
        typer.echo(str(error), err=True)
        sys.exit(EXIT_WRONG_INPUT if isinstance(error, ConfigError) else EXIT_NO)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(error.strerror, err=True)  # status 1 would mean damage to who runs `fsck`
        sys.exit(EXIT_WRONG_INPUT)
