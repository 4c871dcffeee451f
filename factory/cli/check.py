"""`kvtier check`: a tier-config document against its schema and against this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CHUNK_BYTES_MIN = 4096  # slots and extents are 4 KiB-aligned: no chunk of any model takes less

NOT_CHECKED = "Not checked: room for chunks of the size that the server makes them; --chunk-bytes names it."


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
    probably meant. Leaves nothing on the machine. What works but is hardly meant is a warning: memory that is
    short right now, a directory in RAM or on the root file system, a capacity above the drive's size. What
    only a server can try is left to a start: page-locking, a damaged index.
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
