"""`kvtier fsck`: checks a directory for damage, and repairs it on request."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....tiers import KvtierError
from ..exits import EXIT_NO, EXIT_WRONG_INPUT
from ..output import AsJson, emit, progress, safe_lines
from .opened import Directory, refuse_no_store, say_from_checkpoint
from .owner import as_owner

if TYPE_CHECKING:
    from ....tiers.nvme.admin.finding import Report
    from .shapes import Fsck


def fsck(
    path: Directory,
    deep: Annotated[bool, typer.Option("--deep", help="Read every chunk and verify its checksum.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a directory for damage, and repair it on request.

    Exit status: 0 if all is well, 1 if something is wrong, 2 if the check could not run. With --repair, 0
    also means that everything found was repaired. A repair rebuilds a lost index from the segments; stop the
    servers that use the directory first. Where the index in use is out of reach (a read-only mount, another
    container), the checkpoint is checked instead, and what came since is left out.
    """
    try:
        report = _checked(path, deep, repair)
    except (KvtierError, OSError) as error:
        typer.echo(safe_lines(str(error)), err=True)
        raise typer.Exit(EXIT_WRONG_INPUT) from None
    if as_json:
        emit("fsck", _shape(path, report))
    else:
        typer.echo(safe_lines(_as_text(report, repair)))
    if len(report.findings) > report.repaired:
        raise typer.Exit(EXIT_NO)


def _checked(path: Path, deep: bool, repair: bool) -> Report:
    from ....tiers.nvme.admin.afar import check_afar
    from ....tiers.nvme.admin.fsck import check_directory
    from ....tiers.nvme.io.files import Files
    from ....tiers.nvme.store.directory import OutOfReach

    refuse_no_store(path)
    with progress("reading chunks") as bar, nullcontext() if repair else as_owner(path):
        try:
            return check_directory(Files(), path, deep=deep, repair=repair, progress=bar)
        except OutOfReach as error:
            if repair:
                raise
            report, made_s = check_afar(Files(), path, deep=deep, progress=bar)
            say_from_checkpoint(error, made_s)
            return report


def _shape(path: Path, report: Report) -> Fsck:
    from .shapes import FoundDamage, Fsck

    findings = tuple(FoundDamage(one.kind, str(one.where), one.text) for one in report.findings)
    return Fsck(str(path), report.segments, report.chunks, report.repaired, findings)


def _as_text(report: Report, repair: bool) -> str:
    repaired = f", {report.repaired} repaired" if repair else ""
    total = f"{report.segments} segments, {report.chunks} chunks: {len(report.findings)} findings{repaired}"
    return "\n".join([*(f"{one.kind}: {one.text}" for one in report.findings), total])
