"""`kvtier check`: checks a tier-config document against its schema and this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..output import AsJson, emit

CHUNK_BYTES_MIN = 4096  # slots and extents are 4 KiB-aligned: no chunk of any model takes less

NOT_CHECKED = "Not checked: whether each tier has room for the server's chunks. Pass --chunk-bytes to check."


def check(
    file: Annotated[Path | None, typer.Argument(help="The tier-config document.", show_default=False)] = None,
    kv_transfer_config: Annotated[
        str | None,
        typer.Option(
            help="Instead of a file: what vLLM gets as --kv-transfer-config, or - to read it from standard "
            "input. The options around the document are checked, too.",
            show_default=False,
        ),
    ] = None,
    chunk_bytes: Annotated[
        str | None,
        typer.Option(help="Size of one chunk, such as 2MiB.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a tier-config document against this machine.

    Exit status: 0 if the document is good, 2 if not. The message then names the place in the document, the
    problem, and a likely fix. The check leaves nothing on the machine.

    What works but is probably a mistake is only a warning: a directory in RAM or on the root file system, a
    capacity above the drive's size. So is too little free memory: a running server may hold that memory now,
    or the document may be for another machine. Some problems show only when a server starts: page-locking, a
    damaged index.
    """
    from ...config import load_config, probe_config, remarks, resolve_config, shortages
    from ...sizes import parse_chunk_bytes

    source = _source(file, kv_transfer_config)
    least_bytes = CHUNK_BYTES_MIN if chunk_bytes is None else parse_chunk_bytes(chunk_bytes)
    config = resolve_config(load_config(source), chunk_bytes=least_bytes)
    probe_config(config, chunk_bytes=least_bytes)
    for warning in (*shortages(config, chunk_bytes=least_bytes), *remarks(config)):
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        emit("check", {"document": config.model_dump(mode="json", exclude_none=True)})
        return
    typer.echo(f"{'the document' if isinstance(source, Mapping) else source}: {len(config.tiers)} tiers")
    for i, tier in enumerate(config.tiers):
        typer.echo(f"  tiers[{i}]  {tier.type:<8}{tier.summary()}".rstrip())
        for detail in tier.details():
            typer.echo(f"{'':20}{detail}")
    if chunk_bytes is None:
        typer.echo(NOT_CHECKED)


def _source(file: Path | None, kv_transfer_config: str | None) -> str | Path | Mapping[str, Any]:
    """The document, or the path of its file."""
    from ...config import parse_json

    if (file is None) == (kv_transfer_config is None):
        raise typer.BadParameter("name a file, or pass --kv-transfer-config")
    if kv_transfer_config is None:
        assert file is not None, "one of both is there"
        return file
    from ...vllm.options import checked_document, extra_of_transfer, unread

    text = sys.stdin.read() if kv_transfer_config == "-" else kv_transfer_config
    extra = extra_of_transfer(parse_json(text.encode(), "--kv-transfer-config"))
    document = checked_document(extra)
    for warning in unread(extra):
        typer.echo(f"warning: {warning}", err=True)
    return document
