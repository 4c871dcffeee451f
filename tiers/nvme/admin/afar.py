"""Checks a store by its checkpoint, where the index in use is out of reach; nothing of the store is changed.

The checkpoint is older than the files. A segment that has begun another life since, and a file that was made
or removed since, say nothing about it, so what a check finds there is left out. What it names in segments of
the same life is still to be there as it says: the log is only appended to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..io.files import Files
from ..store.frame import STALE
from ..store.glance import Glance, glance
from .finding import Finding, Kind, Report, Where
from .fsck import Progress, check


def check_afar(files: Files, root: Path, *, deep: bool, progress: Progress) -> tuple[Report, int]:
    """Check the store at `root` by its checkpoint.

    Returns:
        What is wrong, and when the checkpoint was made, in seconds since 1970.

    Raises:
        TierError, OSError: there is no checkpoint that can be read.
    """
    with glance(files, root) as seen:
        report = check(seen.store, deep=deep, repair=False, progress=progress)
        findings = tuple(one for one in report.findings if not _came_since(seen, one))
        return replace(report, findings=findings), seen.made_s


def _came_since(seen: Glance, finding: Finding) -> bool:
    """Whether what was found may be what has happened since the checkpoint was made."""
    if finding.kind in (Kind.ORPHAN, Kind.LOST_FILE):
        return not seen.is_current
    if finding.kind is Kind.PLACE:
        with seen.store.index.read() as txn:  # of past lives; whoever catches up drops them
            return bool(txn.number(STALE))
    return finding.kind is not Kind.SUMS and _has_other_life(seen, finding.where)


def _has_other_life(seen: Glance, where: Where) -> bool:
    with seen.store.directory.segments.opened(where.segment, where.generation) as file:
        if file is None:
            return True
        try:
            header = file.read_header()
        except OSError:
            return False
    ours = header is not None and header.name[:2] == file.name[:2]
    return ours and header is not None and header.name.generation > where.generation
