"""`kvtier check`: checks a tier-config document against its schema and this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output import AsJson, emit

if TYPE_CHECKING:
    from ...config import KvtierConfig
    from ...room import Room
    from .shapes import Check

CHUNK_BYTES_MIN = 4096  # slots and extents are 4 KiB-aligned: no chunk of any model takes less

NOT_CHECKED = "Not checked: whether each tier has room for the server's chunks. Pass --chunk-bytes to check."


def check(
    file: Annotated[
        Path | None, typer.Argument(help="The tier-config document; - is standard input.", show_default=False)
    ] = None,
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
    capacity above the drive's size, two tiers on one file system. So is too little free memory: a running
    server may hold that memory now, or the document may be for another machine. Some problems show only when
    a server starts: page-locking, a damaged index.
    """
    from ...config import load_config, probe_config, remarks, resolve_config, rooms, shortages
    from ...room import room_remarks
    from ...sizes import parse_chunk_bytes

    name, source = _source(file, kv_transfer_config)
    least_bytes = CHUNK_BYTES_MIN if chunk_bytes is None else parse_chunk_bytes(chunk_bytes)
    config = resolve_config(load_config(source), chunk_bytes=least_bytes)
    probe_config(config, chunk_bytes=least_bytes)
    found = tuple(rooms(config, chunk_bytes=least_bytes).values())
    warnings = [*shortages(config, chunk_bytes=least_bytes), *remarks(config), *room_remarks(found)]
    if chunk_bytes is not None:  # the indexes of the smallest chunks there can be would fill any memory
        from ...sharedmemory import shared_memory_shortages

        warnings += shared_memory_shortages(config, chunk_bytes=least_bytes)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        emit("check", _shape(config, found, warnings))
        return
    _print(name, config, found)
    if chunk_bytes is None:
        typer.echo(NOT_CHECKED)


def _print(name: str, config: KvtierConfig, found: Sequence[Room]) -> None:
    typer.echo(f"{name}: {len(config.tiers)} tiers")
    for i, tier in enumerate(config.tiers):
        typer.echo(f"  tiers[{i}]  {tier.type:<8}{tier.summary()}".rstrip())
        for room in found:
            if room.place.startswith(f"tiers[{i}]."):
                typer.echo(f"{'':20}{room.line()}")


def _shape(config: KvtierConfig, found: Sequence[Room], warnings: Sequence[str]) -> Check:
    from .shapes import Check, DriveRoom

    drives = [
        DriveRoom(
            place=room.place,
            path=str(room.path),
            mount=room.mount,
            capacity_bytes=room.capacity_bytes,
            reserve_bytes=room.reserve_bytes,
            file_system_bytes=room.whole_bytes,
            free_bytes=room.free_bytes,
            own_bytes=room.own_bytes,
            cap_bytes=room.cap_bytes,
            bound_by=room.bound_by,
        )
        for room in found
    ]
    return Check(config.model_dump(mode="json", exclude_none=True), tuple(drives), tuple(warnings))


def _source(file: Path | None, kv_transfer_config: str | None) -> tuple[str, Mapping[str, Any] | Path]:
    """What messages call the document; and the document itself, or the path of its file."""
    if (file is None) == (kv_transfer_config is None):
        raise typer.BadParameter("name a file, or pass --kv-transfer-config")
    if kv_transfer_config is None:
        assert file is not None, "one of both is there"
        from ..input import name_of, read_json

        return name_of(file), read_json(file)
    from ...config import parse_json
    from ...vllm.options import (
        checked_document,
        document_of_native,
        extra_of_transfer,
        native_entries,
        unread,
    )
    from ..input import read_json

    if kv_transfer_config == "-":
        extra = extra_of_transfer(read_json(Path("-")))
    else:
        extra = extra_of_transfer(parse_json(kv_transfer_config.encode(), "--kv-transfer-config"))
    if native_entries(extra):
        return "the document", document_of_native(extra)
    document = checked_document(extra)
    for warning in unread(extra):
        typer.echo(f"warning: {warning}", err=True)
    return ("the document", document) if isinstance(document, Mapping) else (str(document), Path(document))
