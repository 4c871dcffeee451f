"""`kvtier rm`: removes chunks from a directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import ConfigError
from ...text.ages import parse_age
from ...text.units import format_size, parse_option
from ..exits import EXIT_NO
from ..output import DIGEST_DIGITS, AsJson, emit, one_line, progress
from .choosing import KeyPrefix, Namespace, key_prefix_of
from .opened import Directory, opened

if TYPE_CHECKING:
    from ....tiers.nvme.admin.prune import Chosen, Removed, Selection
    from ....tiers.nvme.store.opening import Store
    from .shapes import Rm

ROOM = 'Servers use the room for new chunks; to make the directory smaller, lower its "capacity".'


def rm(
    path: Directory,
    namespace: Namespace = None,
    key_prefix: KeyPrefix = None,
    older_than: Annotated[
        str | None, typer.Option(help="Minimum age: 90s, 15m, 12h or 7d.", show_default=False)
    ] = None,
    never_read: Annotated[
        bool,
        typer.Option("--never-read", help="Only chunks that were never read back, nor used in memory."),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every chunk of every namespace.")] = False,
    free: Annotated[
        str | None,
        typer.Option(
            help="Of what the other options name, or of all: only so much, such as 64GiB, the longest stored "
            "first.",
            show_default=False,
        ),
    ] = None,
    lru: Annotated[
        bool, typer.Option("--lru", help="With --free: the least recently used first instead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the chunks that match every option given.

    Asks first on a terminal; elsewhere --all needs --yes. Exit status: 0 if chunks were removed, 1 if nothing
    matches or the answer was no. Removed chunks do not come back when the index is rebuilt. Servers reuse the
    space for new chunks; removing alone does not make the directory smaller.
    """
    from ....tiers.nvme.admin.prune import choose

    selection = _selection(namespace, key_prefix, older_than, never_read, everything, free, lru)
    asks = not (yes or dry_run) and _is_terminal()
    if everything and not (yes or dry_run or asks):
        raise ConfigError("--all", "nobody is there to be asked; add --yes to remove every chunk")
    with opened(path) as store:
        chosen = choose(store, selection)
        if chosen and asks and not _confirmed(chosen):
            raise typer.Exit(EXIT_NO)
        removed = _would_remove(chosen) if dry_run else _remove(store, chosen)
    if as_json:
        emit("rm", _shape(path, removed, dry_run))
    elif removed:
        _print(removed, dry_run, hint=free is not None)
    if not removed:
        typer.echo("nothing matches", err=True)
        raise typer.Exit(EXIT_NO)


def _selection(
    namespace: str | None,
    key_prefix: str | None,
    older_than: str | None,
    never_read: bool,
    everything: bool,
    free: str | None,
    lru: bool,
) -> Selection:
    from ....tiers.nvme.admin.prune import Enough, Selection

    given = {
        "--namespace": namespace,
        "--key-prefix": key_prefix,
        "--older-than": older_than,
        "--free": free,
    }
    if not (any(value is not None for value in given.values()) or never_read or everything):
        raise ConfigError("", f"say what to remove: {', '.join(given)}, --never-read or --all")
    for option, value in given.items():
        if value == "":  # a script's variable is empty, which must not mean everything
            raise ConfigError(option, "is empty; give it a value, or leave the option out")
    if lru and free is None:
        raise ConfigError("--lru", "goes together with --free, which says how much to remove")
    return Selection(
        namespace or "",
        key_prefix_of(key_prefix),
        parse_age(older_than or "0s", "--older-than"),
        never_read,
        None if free is None else Enough(parse_option("--free", free), least_recently_used=lru),
    )


def _is_terminal() -> bool:
    """Whether somebody is there to be asked, and sees the question."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _confirmed(chosen: Sequence[Chosen]) -> bool:
    chunks, size = sum(len(one.keys) for one in chosen), sum(one.size_bytes for one in chosen)
    where = "1 namespace" if len(chosen) == 1 else f"{len(chosen)} namespaces"
    return typer.confirm(f"Remove {chunks:,} chunks ({format_size(size)}) of {where}?", err=True)


def _would_remove(chosen: Sequence[Chosen]) -> list[Removed]:
    from ....tiers.nvme.admin.prune import Removed

    return [Removed(one.digest, one.label, len(one.keys), one.size_bytes) for one in chosen]


def _remove(store: Store, chosen: Sequence[Chosen]) -> list[Removed]:
    import asyncio

    from ....tiers.nvme.admin.prune import remove

    total, done = sum(len(one.keys) for one in chosen), 0
    with progress("removing") as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done, total)

        return [asyncio.run(remove(store, one, advance)) for one in chosen]


def _shape(path: Path, removed: Sequence[Removed], dry_run: bool) -> Rm:
    from .shapes import RemovedPart, Rm

    parts = [RemovedPart(one.digest.hex(), one.label, one.chunks, one.size_bytes) for one in removed]
    return Rm(str(path), dry_run, *_sums(removed), tuple(parts))


def _print(removed: Sequence[Removed], dry_run: bool, *, hint: bool) -> None:
    for one in removed:
        name = f"{one_line(one.label)} {one.digest.hex()[:DIGEST_DIGITS]}"
        typer.echo(f"{name}: {one.chunks} chunks, {format_size(one.size_bytes)}")
    chunks, size_bytes = _sums(removed)
    typer.echo(f"{'would remove' if dry_run else 'removed'} {chunks} chunks, {format_size(size_bytes)}")
    if hint:
        typer.echo(ROOM)


def _sums(removed: Sequence[Removed]) -> tuple[int, int]:
    return sum(one.chunks for one in removed), sum(one.size_bytes for one in removed)
