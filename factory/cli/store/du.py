"""`kvtier du`: shows how directories use their space."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...text.units import format_size
from ..output import AsJson, emit, print_pairs
from .opened import Directories, looked_at

if TYPE_CHECKING:
    from ....tiers.nvme.admin.survey import Usage


def du(paths: Directories, as_json: AsJson = False) -> None:
    """Show how a directory uses its space. Of several, show each and the total.

    "read back" is what servers have loaded, or used in another tier, at least once since it was stored.
    "written" is what was written to the drive since the directory was made. What that is a day is over about
    a week in which servers used it.
    """
    found = {path: _usage(path) for path in paths}
    if as_json:
        from .shapes import Du, StoreUsage

        emit("du", Du(tuple(StoreUsage(**asdict(usage), path=str(path)) for path, usage in found.items())))
        return
    for path, usage in found.items():
        if len(found) > 1:
            typer.echo(str(path))
        _print(usage)
    if len(found) > 1:
        typer.echo("total")
        _print_total(found.values())


def _usage(path: Path) -> Usage:
    from ....tiers.nvme.admin.survey import usage

    with looked_at(path) as store:
        return usage(store)


def _print(found: Usage) -> None:
    share = 100 * found.useful_bytes / found.live_bytes if found.live_bytes else 0.0
    print_pairs(
        ("allocated", f"{format_size(found.allocated_bytes)} of {format_size(found.capacity_bytes)}"),
        *((f"  {part}", format_size(size)) for part, size in found.parts.items()),
        ("cap", _cap(found)),
        ("chunks", f"{found.live_chunks}, {format_size(found.live_bytes)}"),
        ("read back", f"{format_size(found.useful_bytes)} ({share:.1f}%)"),
        ("segments", ", ".join(f"{count} {state}" for state, count in found.segments.items() if count)),
        ("quarantined", f"{found.quarantined} chunks"),
        ("written", f"{format_size(found.written_bytes)}, {_a_day(found)}"),
        *((("endurance", _life(found)),) if found.endurance_bytes else ()),
    )


def _cap(found: Usage) -> str:
    cap, free = format_size(found.cap_bytes), f"{format_size(found.free_bytes)} are free"
    if found.bound_by == "capacity":
        return f"{cap}; {free}"
    reserve = f"what the reserve of {format_size(found.reserve_bytes)} needs"
    return f"{cap} ({format_size(found.capacity_bytes)}, less {reserve}: {free})"


def _a_day(found: Usage) -> str:
    return (
        f"{format_size(found.written_bytes_a_day)} a day, {found.drive_writes_a_day:.3g} drive writes a day"
    )


def _life(found: Usage) -> str:
    rated = format_size(found.endurance_bytes)
    if found.years_left is None:
        return f"{rated}; nothing was written yet"
    return f"{rated}; {found.years_left:.1f} years left at this rate"


def _print_total(found: Collection[Usage]) -> None:
    allocated_bytes = sum(usage.allocated_bytes for usage in found)
    capacity_bytes = sum(usage.capacity_bytes for usage in found)
    live_bytes = sum(usage.live_bytes for usage in found)
    written_bytes = sum(usage.written_bytes for usage in found)
    print_pairs(
        ("allocated", f"{format_size(allocated_bytes)} of {format_size(capacity_bytes)}"),
        ("chunks", f"{sum(usage.live_chunks for usage in found)}, {format_size(live_bytes)}"),
        ("written", format_size(written_bytes)),
    )
