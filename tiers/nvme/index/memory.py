"""Shared memory, where the files of an index live: the place, the room in it, and a directory for each index.

A page of shared memory is never read from a drive and never written to one: no lookup waits for a device, and
none that fails, freezes or fills up ends the process. What is there is lost with a reboot; the store has its
checkpoint and its log for that.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from ...errors import TierUnavailable

SHARED_MEMORY = Path("/dev/shm")  # tmpfs on every Linux

OWNER = "store"  # the file that says whose index it is


class Home(NamedTuple):
    """The directory of one index, and which one it is: a path can come to name another one."""

    path: Path
    device: int
    inode: int


def home_path(place: Path, store: bytes, lock_fd: int) -> Path:
    """The directory of the index of a store, by its name and its lock file: a copy of it is another store."""
    lock = os.fstat(lock_fd)
    return place / f"kvtier-index-{os.geteuid()}-{store.hex()[:16]}-{lock.st_dev:x}-{lock.st_ino:x}"


def look(path: Path) -> Home | None:
    """The directory at `path`, None where there is none of ours."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        return None
    return Home(path, state.st_dev, state.st_ino)


def is_there(home: Home) -> bool:
    """Whether its path still names this directory, and its files are in it."""
    return look(home.path) == home and (home.path / "data.mdb").exists()


def make(path: Path, needed_bytes: int, store: Path) -> Home:
    """Make the directory of a store's index anew, with nothing in it but a line on whose it is.

    Raises:
        TierUnavailable: there is too little shared memory, or none.
        OSError: somebody else has something at that path.
    """
    remove(path)
    refuse_small(path.parent, needed_bytes)
    path.mkdir(mode=0o700)
    (path / OWNER).write_bytes(os.fsencode(store.absolute()) + b"\n")
    home = look(path)
    assert home is not None, "it was just made"
    return home


def remove(path: Path) -> None:
    """Remove the directory, if it is there."""
    if path.exists() or path.is_symlink():
        shutil.rmtree(path)


def refuse_small(place: Path, needed_bytes: int) -> None:
    """Refuse a place that has no room for an index.

    Raises:
        TierUnavailable: says how much is needed, how much is there, and what to do.
    """
    try:
        state = os.statvfs(place)
    except OSError as error:
        raise TierUnavailable(
            "nvme", f"there is no shared memory at {place} for the index: {error.strerror}"
        ) from error
    free_bytes = state.f_bavail * state.f_frsize
    if free_bytes < needed_bytes:
        raise TierUnavailable(
            "nvme",
            f"shared memory is too small for the index: it may take {needed_bytes} bytes, and {place} has "
            f"{free_bytes} free; give it more (docker: --shm-size, Kubernetes: an emptyDir of medium Memory) "
            f"or choose a smaller capacity, or larger chunks",
        )


def free_bytes(path: Path) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize
