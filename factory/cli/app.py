"""The command line: `kvtier`.

Each command is a function in a file of its own, listed below in COMMANDS.

A command imports what it needs inside its functions, so that `kvtier --help` stays quick, and lets a
`KvtierError` pass: `main` prints it and chooses the exit status.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ...tiers import ConfigError, KvtierError
from .completion import answer_shells, completion
from .exits import EXIT_NO, EXIT_WRONG_INPUT, EXITS, drop_output, interruptible
from .output import safe_lines
from .planning.check import check
from .planning.explain import explain
from .planning.init import init
from .planning.replay import replay
from .schema import schema
from .store.du import du
from .store.export import export
from .store.fsck import fsck
from .store.import_ import import_
from .store.ls import ls
from .store.rm import rm
from .watching.bench import bench
from .watching.doctor import doctor
from .watching.report import report
from .watching.top import top

COMMANDS = (
    schema,
    init,
    check,
    explain,
    doctor,
    bench,
    replay,
    du,
    ls,
    rm,
    fsck,
    export,
    import_,
    top,
    report,
    completion,
)

PROGRAM = "kvtier"  # also as `python -m kvtier.factory`


class Commands(TyperGroup):
    """All commands: an interrupt, or a reader that leaves, ends each of them and its help alike."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with interruptible():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        with interruptible():
            return super().invoke(context)


app = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    help="Check, inspect and repair kvtier's tiers for an LLM server's KV cache.",
    epilog="Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in EXITS.items()) + ".",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,  # its two options would stand in every help; `kvtier completion` is in their place
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for help alone doubles the time it takes
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version('kvtier-core')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def name_of(command: Callable[..., None]) -> str:
    """What users call a command: `import` is a word of Python's."""
    return command.__name__.rstrip("_")


for command in COMMANDS:
    app.command(name_of(command))(command)


def main() -> None:
    """Run the command line and exit with one of `EXITS`."""
    _prepare_streams()
    answer_shells()
    try:
        app(prog_name=PROGRAM)
    except KvtierError as error:
        typer.echo(safe_lines(str(error)), err=True)
        sys.exit(EXIT_WRONG_INPUT if isinstance(error, ConfigError) else EXIT_NO)
    except OSError as error:
        drop_output()
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(safe_lines(f"{where}{error.strerror or error}"), err=True)
        sys.exit(EXIT_WRONG_INPUT)  # 1 would mean damage to who runs `fsck`


def _prepare_streams() -> None:
    """Open what was closed when we were started, and print what the terminal's encoding lacks as escapes.

    A file of a store must not become what a program takes for our output.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
