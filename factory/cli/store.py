"""`kvtier du`, `ls`, `rm` and `fsck`: what an NVMe directory holds, while servers use it or not."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...tiers import ConfigError, KvtierError
from ..sizes import format_size

if TYPE_CHECKING:
    from ...tiers.nvme.admin.prune import Chosen, Removed
    from ...tiers.nvme.store.opening import Store

EXIT_FOUND = 1  # fsck: something is wrong
EXIT_UNCHECKED = 2  # fsck: it could not be checked
EXIT_INTERRUPTED = 130

DIGEST_DIGITS = 12  # shown of a digest; enough for `rm --namespace`

AGE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Directory = Annotated[Path, typer.Argument(help="The directory of an nvme tier.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def du(path: Directory, as_json: AsJson = False) -> None:
    """Show how the room of a directory is used, and how much of it was ever of use."""
    from ...tiers.nvme.admin.survey import usage

    with _looked_at(path) as store:
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
        ("quarantined", f"{found.quarantined} chunks"),
    )


def ls(
    path: Directory,
    fields: Annotated[bool, typer.Option("--fields", help="Show each namespace field by field.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the namespaces of a directory: models, chunks, bytes, hits, age."""
    from ...tiers.nvme.admin.survey import namespaces

    with _looked_at(path) as store:
        found = namespaces(store)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("namespace", overflow="fold")
    table.add_column("digest", min_width=DIGEST_DIGITS, no_wrap=True)  # whole: `rm` takes it
    for name in ("epoch", "chunks", "bytes", "never read", "hits", "newest", "oldest"):
        table.add_column(name, justify="right")
    now_s = time.time()
    for one in found:
        ages = (_age(now_s - one.newest_s), _age(now_s - one.oldest_s)) if one.chunks else ("-", "-")
        counts = (one.epoch, one.chunks, format_size(one.chunk_bytes), one.never_read_chunks, one.hits)
        table.add_row(one.label, one.digest[:DIGEST_DIGITS], *map(str, counts), *ages)
    Console().print(table)
    for one in found:
        shown = one.fields if fields else one.differing
        if shown:
            head = (
                one.digest[:DIGEST_DIGITS]
                if fields
                else f"{one.digest[:DIGEST_DIGITS]}, where those of its name differ:"
            )
            values = ((f"  {field}", "-" if value is None else value) for field, value in shown.items())
            typer.echo(f"{one.label} {head}")
            _print_pairs(*values)


def rm(
    path: Directory,
    namespace: Annotated[
        str | None, typer.Option(help="A label, or 8 hex digits or more of a digest.", show_default=False)
    ] = None,
    key_prefix: Annotated[
        str | None, typer.Option(help="What the key begins with, in hex.", show_default=False)
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="An age: 90s, 15m, 12h, 7d.", show_default=False)
    ] = None,
    never_read: Annotated[bool, typer.Option("--never-read", help="Only what was never read back.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every chunk of every namespace.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the chunks for which all that is given holds; no rebuild brings them back.

    Their room is used again by what servers store next.
    """
    from ...tiers.nvme.admin.prune import Removed, Selection, choose

    given = {"--namespace": namespace, "--key-prefix": key_prefix, "--older-than": older_than}
    if not (any(value is not None for value in given.values()) or never_read or everything):
        raise ConfigError("", f"say what to remove: {', '.join(given)}, --never-read or --all")
    for option, value in given.items():
        if value == "":  # of a script whose variable is empty: it does not mean everything
            raise ConfigError(option, "is empty; leave it out to set no such limit")
    selection = Selection(
        namespace or "", _from_hex(key_prefix or ""), _from_age(older_than or "0s"), never_read
    )
    with _opened(path) as store:
        chosen = choose(store, selection)
        if dry_run:
            removed = [Removed(one.digest, one.label, len(one.keys), one.size_bytes) for one in chosen]
        else:
            removed = _remove(store, chosen)
    chunks, size_bytes = sum(one.chunks for one in removed), sum(one.size_bytes for one in removed)
    if as_json:
        parts = [{**asdict(one), "digest": one.digest.hex()} for one in removed]
        whole = {"chunks": chunks, "bytes": size_bytes, "removed": not dry_run, "namespaces": parts}
        typer.echo(json.dumps(whole, indent=2))
        return
    for one in removed:
        name = f"{one.label} {one.digest.hex()[:DIGEST_DIGITS]}"
        typer.echo(f"{name}: {one.chunks} chunks, {format_size(one.size_bytes)}")
    typer.echo(f"{'would remove' if dry_run else 'removed'} {chunks} chunks, {format_size(size_bytes)}")


def fsck(
    path: Directory,
    deep: Annotated[bool, typer.Option("--deep", help="Read every chunk and check its checksum.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a directory against itself. Exits with 0, with 1 if something is wrong, 2 if it cannot tell.

    With --repair, 0 also means that all that was wrong is mended. A lost index is rebuilt from the segments;
    for that no server may use the directory.
    """
    from ...tiers.nvme.admin.fsck import check_directory
    from ...tiers.nvme.io.files import Files

    try:
        _refuse_no_store(path)
        with _interruptible(), _progress("reading chunks") as bar:
            report = check_directory(Files(), path, deep=deep, repair=repair, progress=bar)
    except (KvtierError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_UNCHECKED) from None
    if as_json:
        whole = {"segments": report.segments, "chunks": report.chunks, "repaired": report.repaired}
        findings = [finding.to_json() for finding in report.findings]
        typer.echo(json.dumps({**whole, "findings": findings}, indent=2))
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
    from ...tiers.nvme.io.files import Files
    from ...tiers.nvme.store.opening import close_store, open_existing

    _refuse_no_store(path)
    store = open_existing(Files(), path)
    try:
        with _interruptible():
            yield store
    finally:
        close_store(store)


@contextmanager
def _looked_at(path: Path) -> Iterator[Store]:
    """The store for a tool that only looks: where it is out of reach, as its checkpoint says it was."""
    from ...tiers.nvme.io.files import Files
    from ...tiers.nvme.store.directory import OutOfReach
    from ...tiers.nvme.store.glance import glance

    with ExitStack() as stack:
        try:
            store = stack.enter_context(_opened(path))
        except OutOfReach as error:
            store, made_s = stack.enter_context(glance(Files(), path))
            typer.echo(f"{error}", err=True)
            typer.echo(f"this is its checkpoint, {_age(time.time() - made_s)} old", err=True)
        yield store


def _refuse_no_store(path: Path) -> None:
    from ...tiers.nvme.store.opening import is_store

    if not is_store(path):
        raise ConfigError("", f"{path} is no store: it has no kvtier.json")


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _remove(store: Store, chosen: list[Chosen]) -> list[Removed]:
    from ...tiers.nvme.admin.prune import remove

    total, done = sum(len(one.keys) for one in chosen), 0
    with _progress("removing") as bar:

        def told(count: int) -> None:
            nonlocal done
            done += count
            bar(done, total)

        return [asyncio.run(remove(store, one, told)) for one in chosen]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; takes how much is done and how much there is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
