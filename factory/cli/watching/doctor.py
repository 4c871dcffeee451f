"""`kvtier doctor`: looks at this machine and its drives, and says what to mend before a server starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..exits import EXIT_NO
from ..output import AsJson, emit

if TYPE_CHECKING:
    from ...config import KvtierConfig
    from ...machine.examination import Placed
    from .shapes import Doctor


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="The directory of an nvme tier, or a tier-config document (- is standard input); without "
            "it, the machine alone.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for a warning, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and its drives before a server starts.

    Each line is ok, a warning, a fault, or unknown where the machine does not tell. A fault and a warning
    have their fix below. Run it as the user, and in the container, that will run the server. It changes
    nothing.

    Exit status: 0 if there is no fault, 1 if there is one, 2 if it could not look.
    """
    from ...machine.examination import examine, worst
    from ...machine.findings import State

    config = _config(path)
    found = examine(_directories(path, config), config)
    if as_json:
        emit("doctor", _shape(found))
    else:
        _print(found)
    if worst(found) is State.FAULT or (strict and worst(found) is State.WARNING):
        raise typer.Exit(EXIT_NO)


def _config(path: Path | None) -> KvtierConfig | None:
    """The document, resolved for this machine; None where none was named."""
    from ..input import is_document, read_json

    if path is None or not is_document(path):
        return None
    from ...base import PART_ALIGNMENT_BYTES
    from ...config import load_config, resolve_config

    return resolve_config(load_config(read_json(path)), chunk_bytes=PART_ALIGNMENT_BYTES)


def _directories(path: Path | None, config: KvtierConfig | None) -> list[Path]:
    if config is None:
        return [] if path is None else [path.absolute()]
    from ...entries import NvmeConfig

    return [drive.path for tier in config.tiers if isinstance(tier, NvmeConfig) for drive in tier.drives]


def _print(found: Sequence[Placed]) -> None:
    width = max(len(one.finding.check) for one in found)
    shown: object = ()
    for one in found:
        if one.place != shown and len({other.place for other in found}) > 1:
            typer.echo("this machine" if one.place is None else str(one.place))
        shown = one.place
        finding = one.finding
        typer.echo(f"  {finding.state:<7}  {finding.check:<{width}}  {finding.text}")
        if finding.fix:
            typer.echo(f"  {'':7}  {'':{width}}  fix: {finding.fix}")


def _shape(found: Sequence[Placed]) -> Doctor:
    from .shapes import Doctor, MachineCheck

    return Doctor(
        tuple(
            MachineCheck(
                place=None if one.place is None else str(one.place),
                check=one.finding.check,
                state=str(one.finding.state),
                text=one.finding.text,
                fix=one.finding.fix,
            )
            for one in found
        )
    )
