"""`kvtier import`: brings the chunks of a pack into a directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import ConfigError
from ...text.units import format_size
from ..exits import EXIT_NO
from ..input import Stoppable
from ..output import AsJson, emit, progress
from .opened import Directory, refuse_no_store

if TYPE_CHECKING:
    from ....tiers.nvme.admin.unpacking import Unpacked
    from .shapes import Import

STANDARD_INPUT = Path("-")


def import_(
    path: Directory,
    pack: Annotated[
        Path, typer.Argument(help="A file that `kvtier export` wrote; - for a pipe.", show_default=False)
    ],
    new_namespace: Annotated[
        bool,
        typer.Option(
            "--new-namespace", help="Also where no server has used the directory as the pack's did."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the chunks of a pack into a directory.

    A server has made the directory, and may use it meanwhile. Each chunk is verified. What is there already
    is left alone, so an import that was interrupted goes on where it ended. Where there is no room, the
    oldest chunks make some, as for a server. Exit status 1 means that chunks were left out.
    """
    refuse_no_store(path)
    with _source(pack) as fd, Stoppable(fd) as source:
        unpacked = _unpacked(path, pack, source, new_namespace)
    if as_json:
        emit("import", _shape(path, unpacked))
    else:
        _print(unpacked)
    if unpacked.damaged_chunks or unpacked.failed or unpacked.error:
        raise typer.Exit(EXIT_NO)


def _unpacked(path: Path, pack: Path, source: Stoppable, new_namespace: bool) -> Unpacked:
    import asyncio
    import io

    from ....tiers.nvme.admin.pack_file import PackDamaged, read_head, read_records
    from ....tiers.nvme.admin.unpacking import unpack
    from ....tiers.nvme.io.files import Files

    stream = io.BufferedReader(source)
    try:
        head = read_head(stream)
    except PackDamaged as error:
        raise ConfigError("", f"{_named(pack)}: {error}") from error
    done = 0
    with progress("chunks") as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done, done)

        records = read_records(stream)
        work = unpack(
            Files(), path, head, records, source.stop, new_namespace=new_namespace, progress=advance
        )
        return asyncio.run(work)


@contextmanager
def _source(pack: Path) -> Iterator[int]:
    if pack == STANDARD_INPUT:
        if sys.stdin is None:
            raise ConfigError("", "standard input: closed")
        yield sys.stdin.fileno()
        return
    try:
        file = pack.open("rb")
    except OSError as error:
        raise ConfigError("", f"{pack}: {error.strerror or error}") from error
    with file:
        yield file.fileno()


def _named(pack: Path) -> str:
    return "standard input" if pack == STANDARD_INPUT else str(pack)


def _shape(path: Path, unpacked: Unpacked) -> Import:
    from .shapes import Import

    error = None if unpacked.error is None else str(unpacked.error)
    return Import(path=str(path), **{**unpacked._asdict(), "error": error})


def _print(unpacked: Unpacked) -> None:
    text = f"imported {unpacked.chunks} chunks, {format_size(unpacked.size_bytes)}"
    if unpacked.there_chunks:
        text += f"; {unpacked.there_chunks} were there"
    if unpacked.evicted_chunks:
        text += f"; {unpacked.evicted_chunks} older ones made room"
    if unpacked.damaged_chunks:
        text += f"; {unpacked.damaged_chunks} are damaged and left out"
    typer.echo(text)
    for reason, count in unpacked.failed.items():
        typer.echo(f"{count} chunks could not be stored: {reason}", err=True)
    if unpacked.error is not None:
        typer.echo(f"{unpacked.error}", err=True)
