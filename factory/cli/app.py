"""The command line: `kvtier`.

A module that brings commands of its own offers a `typer.Typer`, added below with `app.add_typer`, or
a function for `app.command`. It imports what it needs inside its commands, so that `kvtier --help` stays
quick, and lets a `KvtierError` pass: `main` prints it and chooses the exit status.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from ...tiers import ConfigError, KvtierError
from .replay import replay
from .store import COMMANDS as STORE_COMMANDS

EXIT_FAILED = 1

EXIT_WRONG_INPUT = 2  # as for a wrong option

CHUNK_BYTES_MIN = 4096  # slots and extents are 4 KiB-aligned: no chunk of any model takes less

NOT_CHECKED = "Not checked: room for chunks of the size that the server makes them; --chunk-bytes names it."

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


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The tier-config document.", show_default=False)],
    chunk_bytes: Annotated[
        str | None,
        typer.Option(help="Size of one chunk: bytes, or a size with a unit.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved document as JSON.")] = False,
) -> None:
    """Check a tier-config document against its schema and against this machine, as a start would.

    Exits with 0, or with 2 and one message that names the place, what is wrong there and what was
    probably meant. Changes nothing on the machine. Memory that is short right now is a warning: a running
    server may hold it, or the document is for a larger machine. What can only be tried is left to a
    start: direct I/O, page-locking, a damaged index.
    """
    from ..config import load_config, probe_config, resolve_config, shortages
    from ..sizes import parse_chunk_bytes

    least_bytes = CHUNK_BYTES_MIN if chunk_bytes is None else parse_chunk_bytes(chunk_bytes)
    config = resolve_config(load_config(file), chunk_bytes=least_bytes)
    probe_config(config, chunk_bytes=least_bytes)
    for shortage in shortages(config, chunk_bytes=least_bytes):
        typer.echo(f"warning: {shortage}", err=True)
    if as_json:
        typer.echo(config.model_dump_json(indent=2, exclude_none=True))
        return
    typer.echo(f"{file}: {len(config.tiers)} tiers")
    for i, tier in enumerate(config.tiers):
        typer.echo(f"  tiers[{i}]  {tier.type:<8}{tier.summary()}".rstrip())
    if chunk_bytes is None:
        typer.echo(NOT_CHECKED)


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
