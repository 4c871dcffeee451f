"""`kvtier report`: writes one HTML page about a store and the engines on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..store.opened import Directory, looked_at


def report(
    path: Directory,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the page goes.", dir_okay=False)
    ] = Path("report.html"),
) -> None:
    """Write one HTML page about a store and the engines on it.

    It has hit rates and rates over time, room, wear, namespaces, and what to do, and needs nothing from
    elsewhere. What is over time comes from the engines that use the store now, which remember a day.
    """
    from ....engine.live.reader import boards_of
    from ....tiers.nvme.admin.survey import namespaces, usage
    from .looks import Looks
    from .report_page import page

    with looked_at(path) as store:
        used, known = usage(store), list(namespaces(store))
    boards = boards_of(path)
    engines = list(zip(boards, Looks().add(boards, time.time()), strict=True))
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    output.write_text(page(str(path), made, engines, used, known), encoding="utf-8")
    typer.echo(f"wrote {output}")
