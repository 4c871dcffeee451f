"""Whose a store's directory is, and who else may look into it.

Prompts lie in a store, so nobody but its user may open it. Where it is ours beyond doubt and others may, it
is closed to them again: Kubernetes' `fsGroup` gives the group every file of a volume at each start of a pod,
and systemd's `StateDirectory=` sets its mode at each start of a service.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from ...errors import TierUnavailable

logger = logging.getLogger(__name__)

OTHERS = 0o077  # what group and world may do


def refuse_foreign(root: Path, *, is_store: bool) -> None:
    """Refuse a directory of another user, and one without a store in it that others may open.

    Raises:
        TierUnavailable: says why and what to do.
    """
    state = root.stat()
    if state.st_uid != os.geteuid():
        raise TierUnavailable("nvme", _of_another(root, state, is_store=is_store))
    if stat.S_IMODE(state.st_mode) & OTHERS and not is_store:
        mode = f"{stat.S_IMODE(state.st_mode):04o}"
        raise TierUnavailable(
            "nvme",
            f"{root} is open to other users (mode {mode}): anyone could read prompts; {_inside(root)}"
            f"{'' if _is_mount_root(root) else f', or chmod 0700 {root}'}",
        )


def _of_another(root: Path, state: os.stat_result, *, is_store: bool) -> str:
    belongs = f"{root} belongs to user {state.st_uid}, not to us ({os.geteuid()})"
    if is_store:
        return f"{belongs}; run this as that user (sudo -u '#{state.st_uid}' ...), or choose another path"
    if os.access(root, os.W_OK | os.X_OK):
        return f"{belongs}; {_inside(root)}"
    return f"{belongs}; chown it, or choose another path"


def _inside(root: Path) -> str:
    return f"name a directory inside it, which kvtier makes for itself: {root / 'kvtier'}"


def _is_mount_root(root: Path) -> bool:
    with suppress(OSError):
        return root.is_mount()
    return False


def tighten(root: Path) -> None:
    """Take from others what somebody has given them of our store; says so once.

    Raises:
        OSError: it cannot be done.
    """
    mode = stat.S_IMODE(root.stat().st_mode)
    if not mode & OTHERS:
        return
    root.chmod(0o700)  # first: what is in it is out of reach from here on
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            _close_to_others(Path(directory, name))
    logger.warning(
        "nvme: %s was open to other users (mode %04o) and is closed to them again. To keep it so: "
        "in Kubernetes set fsGroupChangePolicy: OnRootMismatch%s, in a systemd unit StateDirectoryMode=0700",
        root,
        mode,
        " and name a directory inside the volume" if _is_mount_root(root) else "",
    )


def _close_to_others(path: Path) -> None:
    with suppress(FileNotFoundError):  # of another process, which has removed it since
        state = path.lstat()
        if state.st_uid == os.geteuid() and not stat.S_ISLNK(state.st_mode) and state.st_mode & OTHERS:
            path.chmod(0o700 if stat.S_ISDIR(state.st_mode) else 0o600)
