"""`kvtier du`, `ls`, `rm` and `fsck`: what an NVMe directory holds, while servers use it or not."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tiers import ConfigError
from .sizes import format_size

if TYPE_CHECKING:
    from ..tiers.prune import Chosen
    from ..tiers.store import Store

EXIT_FOUND = 1  # fsck: something is wrong
EXIT_UNCHECKED = 2  # fsck: it could not be checked
EXIT_INTERRUPTED = 130

AGE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Directory = Annotated[Path, typer.Argument(help="The directory of an nvme tier.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def du(path: Directory, as_json: AsJson = False) -> None:
    """Show how the room of a directory is used, and how much of it was ever of use."""
    from ..tiers.survey import usage

    with _opened(path) as store:
        found = usage(store)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    share = 100 * found.useful_bytes / found.live_bytes if found.live_bytes else 0.0
    _print_pairs(
        ("allocated", f"{format_size(found.allocated_bytes)} of {format_size(found.capacity_bytes)}"),
        *((f"  {part}", format_size(size)) for part, size in found.parts.items()),
        ("chunks", f"{found.live_chunks}, {format_size(found.live_bytes)}"),
        ("read back", f"{format_size(found.useful_bytes)} ({share:.1f} %)"),
        ("segments", ", ".join(f"{count} {state}" for state, count in found.segments.items() if count)),
    )


def ls(
    path: Directory,
    fields: Annotated[bool, typer.Option("--fields", help="Show each namespace field by field.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the namespaces of a directory: models, chunks, bytes, hits, age."""
    from ..tiers.survey import namespaces

    with _opened(path) as store:
        found = namespaces(store)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("namespace", "digest", "epoch", "chunks", "bytes", "never read", "hits", "newest", "oldest")
    now_s = time.time()
    for one in found:
        ages = (_age(now_s - one.newest_s), _age(now_s - one.oldest_s)) if one.chunks else ("-", "-")
        counts = (one.epoch, one.chunks, format_size(one.chunk_bytes), one.never_read_chunks, one.hits)
        table.add_row(one.label, one.digest[:12], *map(str, counts), *ages)
    Console().print(table)
    for one in found if fields else ():
        _print_pairs((f"{one.label} {one.digest[:12]}", ""), *((f"  {k}", v) for k, v in one.fields.items()))


def rm(
    path: Directory,
    namespace: Annotated[str, typer.Option(help="A label, or the beginning of a digest.")] = "",
    key_prefix: Annotated[str, typer.Option(help="What the key begins with, in hex.")] = "",
    older_than: Annotated[str, typer.Option(help="An age: 90s, 15m, 12h, 7d.")] = "",
    never_read: Annotated[bool, typer.Option("--never-read", help="Only what was never read back.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every chunk of every namespace.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the chunks for which all that is given holds; no rebuild brings them back."""
    from ..tiers.prune import Selection, choose

    if not (namespace or key_prefix or older_than or never_read or everything):
        raise ConfigError(
            "", "say what to remove: --namespace, --key-prefix, --older-than, --never-read or --all"
        )
    selection = Selection(namespace, _from_hex(key_prefix), _from_age(older_than), never_read)
    with _opened(path) as store:
        chosen = choose(store, selection)
        if not dry_run:
            _remove(store, chosen)
    chunks, size_bytes = sum(len(one.keys) for one in chosen), sum(one.size_bytes for one in chosen)
    if as_json:
        typer.echo(json.dumps({"chunks": chunks, "bytes": size_bytes, "removed": not dry_run}))
    else:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {chunks} chunks, {format_size(size_bytes)}")


def fsck(
    path: Directory,
    deep: Annotated[bool, typer.Option("--deep", help="Read every chunk and check its checksum.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a directory against itself. Exits with 0, with 1 if something is wrong, 2 if it cannot tell.

    A lost or torn index is rebuilt from the segments as the directory is opened.
    """
    from ..tiers.errors import TierError
    from ..tiers.fsck import check

    try:
        with _opened(path) as store, _progress("reading chunks", deep) as told:
            report = check(store, deep=deep, repair=repair, told=told)
    except (TierError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_UNCHECKED) from None
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        typer.echo(json.dumps({**asdict(report), "findings": findings}, indent=2))
    else:
        for finding in report.findings:
            typer.echo(f"{finding.kind}: {finding.text}")
        mended = f", {report.repaired} mended" if repair else ""
        found = len(report.findings)
        typer.echo(f"{report.segments} segments, {report.chunks} chunks: {found} findings{mended}")
    if len(report.findings) > report.repaired:
        raise typer.Exit(EXIT_FOUND)


COMMANDS = (du, ls, rm, fsck)


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    from ..tiers.files import Files
    from ..tiers.store import close_store, open_existing

    store = open_existing(Files(), path)
    try:
        yield store
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        close_store(store)


def _remove(store: Store, chosen: list[Chosen]) -> None:
    from ..tiers.prune import remove

    with _progress("removing", True) as told:
        for one in chosen:
            asyncio.run(remove(store, one, told))


@contextmanager
def _progress(what: str, wanted: bool) -> Iterator[Any]:
    """A line that counts, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:.0f}"))
    with Progress(
        *columns, console=console, transient=True, disable=not (wanted and console.is_terminal)
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.advance(task, count)


def _print_pairs(*pairs: tuple[str, str]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}".rstrip())


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(
            "--key-prefix", f'should be whole bytes in hex, not "{text}"; for example 00ff'
        ) from None


def _from_age(text: str) -> float:
    if not text:
        return 0.0
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ConfigError(
            "--older-than", f'should be a number and s, m, h or d, not "{text}"; for example 7d'
        )
    return float(match[1]) * AGE_UNITS_S[match[2]]


def _age(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= AGE_UNITS_S[unit]:
            return f"{seconds / AGE_UNITS_S[unit]:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
