"""`kvtier ls`: lists the namespaces of a directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ...text.ages import format_age
from ...text.units import format_size
from ..output import DIGEST_DIGITS, AsJson, emit, print_pairs
from .opened import Directory, looked_at

if TYPE_CHECKING:
    from ....tiers.nvme.admin.survey import NamespaceUsage

COLUMNS = ("epoch", "chunks", "bytes", "never read", "hits", "newest", "oldest")


def ls(
    path: Directory,
    fields: Annotated[bool, typer.Option("--fields", help="Print every field of each namespace.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a directory's namespaces with size, hits and age."""
    from ....tiers.nvme.admin.survey import namespaces

    with looked_at(path) as store:
        found = namespaces(store)
    if as_json:
        emit("ls", {"path": str(path), "namespaces": [asdict(one) for one in found]})
        return
    _print_table(found)
    for one in found:
        if fields:
            _print_fields(one, one.fields, "")
        else:
            _print_fields(one, one.differing, " differs from namespaces of the same label in:")


def _print_table(found: Sequence[NamespaceUsage]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("namespace", overflow="fold")
    table.add_column("digest", min_width=DIGEST_DIGITS, no_wrap=True)  # whole: `rm` takes it
    for name in COLUMNS:
        table.add_column(name, justify="right")
    now_s = time.time()
    for one in found:
        table.add_row(one.label, one.digest[:DIGEST_DIGITS], *_row(one, now_s))
    Console().print(table)


def _row(one: NamespaceUsage, now_s: float) -> list[str]:
    counts = (one.epoch, one.chunks, format_size(one.chunk_bytes), one.never_read_chunks, one.hits)
    stored = (one.newest_unix_s, one.oldest_unix_s)
    ages = [format_age(now_s - when_s) if one.chunks else "-" for when_s in stored]
    return [*map(str, counts), *ages]


def _print_fields(one: NamespaceUsage, shown: Mapping[str, str | None], remark: str) -> None:
    if not shown:
        return
    typer.echo(f"{one.label} {one.digest[:DIGEST_DIGITS]}{remark}")
    print_pairs(*((f"  {field}", "-" if value is None else value) for field, value in shown.items()))
