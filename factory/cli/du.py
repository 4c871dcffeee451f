"""`kvtier du`: shows how a directory uses its space."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ..sizes import format_size
from .opened import Directory, opened
from .output import AsJson, print_pairs

if TYPE_CHECKING:
    from ...tiers.nvme.admin.survey import Usage


def du(path: Directory, as_json: AsJson = False) -> None:
    """Show how a directory uses its space.

    "read back" is what servers have loaded at least once since it was stored.
    """
    from ...tiers.nvme.admin.survey import usage

    with opened(path) as store:
        found = usage(store)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print(found)


def _print(found: Usage) -> None:
    share = 100 * found.useful_bytes / found.live_bytes if found.live_bytes else 0.0
    print_pairs(
        ("allocated", f"{format_size(found.allocated_bytes)} of {format_size(found.capacity_bytes)}"),
        *((f"  {part}", format_size(size)) for part, size in found.parts.items()),
        ("chunks", f"{found.live_chunks}, {format_size(found.live_bytes)}"),
        ("read back", f"{format_size(found.useful_bytes)} ({share:.1f}%)"),
        ("segments", ", ".join(f"{count} {state}" for state, count in found.segments.items() if count)),
        ("quarantined", f"{found.quarantined} chunks"),
    )
