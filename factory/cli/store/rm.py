"""`kvtier rm`: removes chunks from a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import ConfigError
from ...text.ages import parse_age
from ...text.units import format_size
from ..output import DIGEST_DIGITS, AsJson, emit, progress
from .opened import Directory, opened

if TYPE_CHECKING:
    from ....tiers.nvme.admin.prune import Chosen, Removed, Selection
    from ....tiers.nvme.store.opening import Store


def rm(
    path: Directory,
    namespace: Annotated[
        str | None, typer.Option(help="A label, or at least 8 hex digits of a digest.", show_default=False)
    ] = None,
    key_prefix: Annotated[
        str | None, typer.Option(help="The first bytes of the key, in hex.", show_default=False)
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Minimum age: 90s, 15m, 12h or 7d.", show_default=False)
    ] = None,
    never_read: Annotated[
        bool,
        typer.Option("--never-read", help="Only chunks that were never read back, nor used in memory."),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every chunk of every namespace.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the chunks that match every option given.

    Removed chunks do not come back when the index is rebuilt. Servers reuse the space for new chunks.
    """
    from ....tiers.nvme.admin.prune import choose

    selection = _selection(namespace, key_prefix, older_than, never_read, everything)
    with opened(path) as store:
        chosen = choose(store, selection)
        removed = _would_remove(chosen) if dry_run else _remove(store, chosen)
    if as_json:
        emit("rm", _as_json(removed, dry_run))
    else:
        _print(removed, dry_run)


def _selection(
    namespace: str | None, key_prefix: str | None, older_than: str | None, never_read: bool, everything: bool
) -> Selection:
    from ....tiers.nvme.admin.prune import Selection

    given = {"--namespace": namespace, "--key-prefix": key_prefix, "--older-than": older_than}
    if not (any(value is not None for value in given.values()) or never_read or everything):
        raise ConfigError("", f"say what to remove: {', '.join(given)}, --never-read or --all")
    for option, value in given.items():
        if value == "":  # a script's variable is empty, which must not mean everything
            raise ConfigError(option, "is empty; give it a value, or leave the option out")
    return Selection(
        namespace or "",
        key_prefix_of(key_prefix),
        parse_age(older_than or "0s", "--older-than"),
        never_read,
    )


def key_prefix_of(option: str | None) -> bytes:
    """What --key-prefix gives in hex; empty where it is not given.

    Raises:
        ConfigError: it is no hex.
    """
    try:
        return bytes.fromhex(option or "")
    except ValueError:
        raise ConfigError(
            "--key-prefix", f'should be pairs of hex digits, not "{option}"; for example 00ff'
        ) from None


def _would_remove(chosen: Sequence[Chosen]) -> list[Removed]:
    from ....tiers.nvme.admin.prune import Removed

    return [Removed(one.digest, one.label, len(one.keys), one.size_bytes) for one in chosen]


def _remove(store: Store, chosen: Sequence[Chosen]) -> list[Removed]:
    from ....tiers.nvme.admin.prune import remove

    total, done = sum(len(one.keys) for one in chosen), 0
    with progress("removing") as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done, total)

        return [asyncio.run(remove(store, one, advance)) for one in chosen]


def _as_json(removed: Sequence[Removed], dry_run: bool) -> dict[str, object]:
    chunks, size_bytes = _sums(removed)
    parts = [{**asdict(one), "digest": one.digest.hex()} for one in removed]
    return {"dry_run": dry_run, "chunks": chunks, "size_bytes": size_bytes, "namespaces": parts}


def _print(removed: Sequence[Removed], dry_run: bool) -> None:
    for one in removed:
        name = f"{one.label} {one.digest.hex()[:DIGEST_DIGITS]}"
        typer.echo(f"{name}: {one.chunks} chunks, {format_size(one.size_bytes)}")
    chunks, size_bytes = _sums(removed)
    typer.echo(f"{'would remove' if dry_run else 'removed'} {chunks} chunks, {format_size(size_bytes)}")


def _sums(removed: Sequence[Removed]) -> tuple[int, int]:
    return sum(one.chunks for one in removed), sum(one.size_bytes for one in removed)
