"""The command line: `kvtier`.

A module that brings commands of its own offers a `typer.Typer`, added below with `app.add_typer`, or
a function for `app.command`. It imports what it needs inside its commands, so that `kvtier --help` stays
quick, and lets a `KvtierError` pass: `main` prints it and chooses the exit status.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from ...tiers import ConfigError, KvtierError
from .check import check
from .replay import replay
from .store import COMMANDS as STORE_COMMANDS

EXIT_FAILED = 1

EXIT_WRONG_INPUT = 2  # as for a wrong option

app = typer.Typer(
    name="kvtier",
    help="Tiers for the KV cache of LLM servers: GPU, pinned CPU, NVMe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for help alone doubles the time it takes
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kvtier {installed_version('kvtier')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def schema() -> None:
    """Print the JSON Schema of the tier-config document."""
    from ..schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))


app.command()(check)
app.command()(replay)
for command in STORE_COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line and exit: 0, 1 when the work failed, 2 when what was asked for is wrong."""
    try:
        app()
    except KvtierError as error:
        typer.echo(str(error), err=True)
        sys.exit(EXIT_WRONG_INPUT if isinstance(error, ConfigError) else EXIT_FAILED)
