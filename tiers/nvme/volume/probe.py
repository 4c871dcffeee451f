"""Tries what a store needs of its file system: at each open, and by `kvtier check`.

It is tried on a file without a name, of which nothing is left even where the process is killed: direct I/O,
room taken ahead (`fallocate`), overwriting in place, and locks that exclude, in one process and between two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import TierUnavailable
from ..io.blocks import BLOCK_BYTES, scratch
from ..io.files import Files
from ..io.kernel import NOT_SUPPORTED, fallocate, set_no_cow
from .filesystem import COPIES_ON_WRITE, LOCKS_ARE_KNOWN, Abilities, Standing, Verdict, verdicts
from .mounts import Mount, mount_of

PROBE_PREFIX = ".kvtier-probe-"  # of a file with a name, where there are none without
CHILD_WAIT_S = 10.0  # for an interpreter to start and try one lock; it takes 20 ms


class Examined(NamedTuple):
    """Where a store is or will be, what can be done there, and what to warn of."""

    mount: Mount
    abilities: Abilities
    warnings: tuple[str, ...]


def examined(files: Files, root: Path, *, thorough: bool = False) -> Examined:
    """Look at the file system where the store at `root` is or will be.

    Leaves nothing behind.

    Args:
        thorough: whether a lock is tried from a second process, whatever the type.

    Raises:
        TierUnavailable: no store can be kept there; the message says why and what to do.
        OSError: the drive refused.
    """
    place = existing(root)
    mount = mount_of(place)
    _refuse(root, mount, verdicts(mount, None))
    abilities = try_out(files, place, mount, other_process=thorough or mount.kind not in LOCKS_ARE_KNOWN)
    found = verdicts(mount, abilities)
    _refuse(root, mount, found)
    return Examined(mount, abilities, tuple(f"{root}: {mount.kind} is {one.reason}" for one in found))


def overwrite_in_place(root: Path) -> bool:
    """Have what is made in it from now on keep its blocks when it is overwritten, where that can be."""
    done = True
    for directory in (root, root / "segments"):
        if directory.is_dir():
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                done &= set_no_cow(fd)
            finally:
                os.close(fd)
    return done


def existing(path: Path) -> Path:
    """As much of a path as there is."""
    return next(found for found in (path, *path.parents) if found.exists())


def _refuse(root: Path, mount: Mount, found: list[Verdict]) -> None:
    if found and found[0].standing is Standing.REFUSED:
        raise TierUnavailable("nvme", f"{root} cannot be used: {mount.kind} is {found[0].reason}")


def try_out(files: Files, place: Path, mount: Mount, *, other_process: bool) -> Abilities:
    """Try in a directory what a store needs of its file system; leaves nothing behind.

    Raises:
        OSError: the drive refused.
    """
    try:
        with _nameless(place) as (fd, path):
            copies = mount.kind in COPIES_ON_WRITE
            in_place = not copies or set_no_cow(fd)  # of an empty file: so before anything is written
            return Abilities(
                fallocate=_can_fallocate(fd),
                direct=files.direct and _can_write_direct(files, path),
                in_place=in_place,
                locks=_locks_exclude(files, fd, path, other_process=other_process),
            )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Abilities()  # no verdict; the store that is there is what can give room back
        raise


@contextlib.contextmanager
def _nameless(place: Path) -> Iterator[tuple[int, Path]]:
    """A file that is gone once it is closed, and a path by which it can be opened again meanwhile."""
    try:
        fd = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.EISDIR):
            raise
        with tempfile.NamedTemporaryFile(dir=place, prefix=PROBE_PREFIX) as file:
            yield file.fileno(), Path(file.name)
        return
    try:
        # By the pid that /proc knows: in a PID namespace with another one's /proc it is not ours.
        yield fd, Path(f"/proc/{os.readlink('/proc/self')}/fd/{fd}")
    finally:
        os.close(fd)


def _can_fallocate(fd: int) -> bool:
    try:
        fallocate(fd, BLOCK_BYTES)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return False
    return True


def _can_write_direct(files: Files, path: Path) -> bool:
    try:
        fd = files.open_data(path, write=True)
        try:
            files.pwritev(fd, [scratch(BLOCK_BYTES)], 0)
        finally:
            files.close(fd)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return False
    return True


def _locks_exclude(files: Files, fd: int, path: Path, *, other_process: bool) -> bool:
    """Whether a byte that is locked through one open file is refused to another, of a second process too."""
    try:
        if not files.try_lock(fd, 0, exclusive=True):
            return False
        other_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if files.try_lock(other_fd, 0, exclusive=True):
                return False
        finally:
            os.close(other_fd)
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.ENOLCK):
            raise
        return False
    return not other_process or _is_refused_elsewhere(path)


_TRY_LOCK = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
except OSError:
    sys.exit(0)
print("locked")
"""


def _is_refused_elsewhere(path: Path) -> bool:
    """Whether a second process is refused the lock; also where none can be started, which says nothing."""
    command = [sys.executable, "-I", "-S", "-c", _TRY_LOCK, str(path)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=CHILD_WAIT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return True
    return ended.stdout.strip() != b"locked"
