"""`kvtier ls`: lists the namespaces of a directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...text.ages import format_age
from ...text.units import format_size
from ..exits import EXIT_NO
from ..output import (
    DIGEST_DIGITS,
    AsJson,
    emit,
    is_terminal,
    one_line,
    print_pairs,
    print_records,
    print_table,
)
from .opened import Directory, looked_at

if TYPE_CHECKING:
    from ....tiers.nvme.admin.survey import NamespaceUsage

COLUMNS = ("digest", "epoch", "chunks", "bytes", "unread", "hits", "newest", "oldest", "namespace")


class Sort(StrEnum):
    """By what namespaces are sorted; the largest, the newest or the longest stored come first."""

    NAME = "name"
    BYTES = "bytes"
    HITS = "hits"
    NEWEST = "newest"
    OLDEST = "oldest"
    NEVER_READ = "never-read"


_ORDER: Mapping[Sort, Callable[[NamespaceUsage], Any]] = {
    Sort.NAME: lambda one: 0,
    Sort.BYTES: lambda one: -one.chunk_bytes,
    Sort.HITS: lambda one: -one.hits,
    Sort.NEWEST: lambda one: -one.newest_unix_s,
    Sort.OLDEST: lambda one: one.oldest_unix_s or float("inf"),  # none where there are no chunks
    Sort.NEVER_READ: lambda one: -one.never_read_chunks,
}


def ls(
    path: Directory,
    sort: Annotated[Sort, typer.Option(help="By what to sort; the most comes first.")] = Sort.NAME,
    model: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only namespaces with this in their label.", show_default=False),
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="Print every field of each namespace.")] = False,
    as_json: AsJson = False,
) -> None:
    """List a directory's namespaces with size, hits and age.

    In a pipe each line is one namespace, in columns apart by tabs: digest, epoch, chunks, bytes, chunks never
    read, hits, when the newest and the oldest chunk was stored (seconds since 1970), and the label. With
    --fields each line is one field: digest, name, value. Exit status: 1 if --model matches nothing.
    """
    from ....tiers.nvme.admin.survey import namespaces
    from .shapes import Ls

    with looked_at(path) as store:
        found = [one for one in namespaces(store) if (model or "").lower() in one.label.lower()]
    found.sort(key=_ORDER[sort])  # by label where equal
    if as_json:
        emit("ls", Ls(str(path), tuple(found)))
    elif not is_terminal():
        print_records(_field_records(found) if fields else map(_record, found))
    else:
        now_s = time.time()
        print_table(COLUMNS, [_row(one, now_s) for one in found])
        for one in found:
            _print_fields(one, fields)
    if model is not None and not found:
        typer.echo("nothing matches", err=True)
        raise typer.Exit(EXIT_NO)


def _record(one: NamespaceUsage) -> tuple[object, ...]:
    counts = (one.epoch, one.chunks, one.chunk_bytes, one.never_read_chunks, one.hits)
    return (one.digest[:DIGEST_DIGITS], *counts, one.newest_unix_s, one.oldest_unix_s, one.label)


def _field_records(found: Sequence[NamespaceUsage]) -> list[tuple[object, ...]]:
    return [(one.digest[:DIGEST_DIGITS], *field) for one in found for field in one.fields.items()]


def _row(one: NamespaceUsage, now_s: float) -> list[str]:
    counts = (one.epoch, one.chunks, format_size(one.chunk_bytes), one.never_read_chunks, one.hits)
    stored = (one.newest_unix_s, one.oldest_unix_s)
    ages = [format_age(now_s - when_s) if one.chunks else "-" for when_s in stored]
    return [one.digest[:DIGEST_DIGITS], *map(str, counts), *ages, one.label]


def _print_fields(one: NamespaceUsage, all_fields: bool) -> None:
    shown: Mapping[str, str | None] = one.fields if all_fields else one.differing
    if not shown:
        return
    remark = "" if all_fields else " differs from namespaces of the same label in:"
    typer.echo(f"{one_line(one.label)} {one.digest[:DIGEST_DIGITS]}{remark}")
    print_pairs(*((f"  {field}", "-" if value is None else value) for field, value in shown.items()))
