"""Lets root look at another user's store as that user, so that nothing of root's is left in it.

A store belongs to one user, and a file of root's in it would keep that user's server from starting.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ....tiers import TierUnavailable

PR_SET_DUMPABLE = 4  # of <linux/prctl.h>

# What looking at a store imports: the owner may not read the folders that the interpreter lies in.
_NEEDED = (
    "kvtier.tiers.nvme.admin.survey",
    "kvtier.tiers.nvme.admin.afar",
    "kvtier.tiers.nvme.admin.fsck",
    "kvtier.tiers.nvme.store.glance",
    "kvtier.tiers.nvme.store.opening",
)


@contextmanager
def as_owner(path: Path) -> Iterator[None]:
    """Be the owner of a store for a while, where we are root and it is another user's; else do nothing.

    The whole process is that user meanwhile: for commands that have no other thread at work, and only look.

    Raises:
        TierUnavailable: root may not become that user here, or that user cannot reach the path.
    """
    owner = path.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    for module in _NEEDED:
        import_module(module)
    groups, gid = os.getgroups(), os.getegid()
    try:
        try:
            _become(owner.st_uid, owner.st_gid, [])
        except OSError as error:
            message = f"{path} belongs to user {owner.st_uid}, whom root cannot stand in for here: "
            raise TierUnavailable("nvme", message + (error.strerror or str(error))) from error
        _refuse_closed(path, owner.st_uid)
        yield
    finally:
        os.seteuid(0)
        _become(0, gid, groups)


def _become(uid: int, gid: int, groups: list[int]) -> None:
    """While we are root: be that user, and keep /proc/self our own, by which locks and probes find files."""
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _refuse_closed(path: Path, uid: int) -> None:
    for parent in reversed(path.absolute().parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            raise TierUnavailable("nvme", f"{path} belongs to user {uid}, who may not enter {parent}")
