"""`kvtier check`: checks a tier-config document against its schema and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CHUNK_BYTES_MIN = 4096  # slots and extents are 4 KiB-aligned: no chunk of any model takes less

NOT_CHECKED = "Not checked: whether each tier has room for the server's chunks. Pass --chunk-bytes to check."


def check(
    file: Annotated[Path, typer.Argument(help="The tier-config document.", show_default=False)],
    chunk_bytes: Annotated[
        str | None,
        typer.Option(help="Size of one chunk, such as 2MiB.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved document as JSON.")] = False,
) -> None:
    """Check a tier-config document against this machine.

    Exit status: 0 if the document is good, 2 if not. The message then names the place in the document, the
    problem, and a likely fix. The check leaves nothing on the machine.

    What works but is probably a mistake is only a warning: a directory in RAM or on the root file system, a
    capacity above the drive's size. So is too little free memory: a running server may hold that memory now,
    or the document may be for another machine. Some problems show only when a server starts: page-locking, a
    damaged index.
    """
    from ..config import load_config, probe_config, remarks, resolve_config, shortages
    from ..sizes import parse_chunk_bytes

    least_bytes = CHUNK_BYTES_MIN if chunk_bytes is None else parse_chunk_bytes(chunk_bytes)
    config = resolve_config(load_config(file), chunk_bytes=least_bytes)
    probe_config(config, chunk_bytes=least_bytes)
    for warning in (*shortages(config, chunk_bytes=least_bytes), *remarks(config)):
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(config.model_dump_json(indent=2, exclude_none=True))
        return
    typer.echo(f"{file}: {len(config.tiers)} tiers")
    for i, tier in enumerate(config.tiers):
        typer.echo(f"  tiers[{i}]  {tier.type:<8}{tier.summary()}".rstrip())
        for detail in tier.details():
            typer.echo(f"{'':20}{detail}")
    if chunk_bytes is None:
        typer.echo(NOT_CHECKED)
