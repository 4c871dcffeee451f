"""Shared memory, where the files of an index live: the place, the room in it, and a directory for each index.

A page of shared memory is never read from a drive and never written to one: no lookup waits for a device, and
none that fails, freezes or fills up ends the process. What is there is lost with a reboot; the store has its
checkpoint and its log for that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...cgroups import CGROUP_ROOT, OWN_CGROUPS, memory_groups
from ...errors import TierUnavailable
from ..io.files import free_bytes
from .datafile import DATA
from .slots import LOCKS, make_lock_file
from .writer import WRITER

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # tmpfs on every Linux

OWNER = "store"  # the file that says whose index it is
FILES = (OWNER, WRITER, LOCKS, DATA)  # all of an index; without one of them, or with another, it is none


_OF_THE_PLACE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOENT)


class Home(NamedTuple):
    """The directory of one index with its files, and which ones they are: a path can come to name another.

    A second file in the place of a lock file would be a second lock on the same pages.
    """

    path: Path
    device: int
    inodes: tuple[int, ...]

    @property
    def name(self) -> str:
        """What tells it from every other one since the machine was started."""
        return "-".join(f"{number:x}" for number in (self.device, *self.inodes))


def home_path(place: Path, store: bytes, lock_fd: int) -> Path:
    """The directory of the index of a store, by its name and its lock file: a copy of it is another store."""
    lock = os.fstat(lock_fd)
    return place / f"kvtier-index-{os.geteuid()}-{store.hex()[:16]}-{lock.st_dev:x}-{lock.st_ino:x}"


def look(path: Path) -> Home | None:
    """The directory at `path` with all of its files, None where there is none of ours, or not all of it."""
    try:
        folder, *files = [path.lstat(), *((path / name).lstat() for name in FILES)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.geteuid():
        return None
    if not all(stat.S_ISREG(file.st_mode) and file.st_dev == folder.st_dev for file in files):
        return None
    return Home(path, folder.st_dev, (folder.st_ino, *(file.st_ino for file in files)))


def is_there(home: Home) -> bool:
    """Whether its path still names this directory, and its files are in it; True where nobody can say."""
    try:
        return look(home.path) == home
    except OSError:
        return True


def make(path: Path, needed_bytes: int, store: Path) -> Home:
    """Make the directory of a store's index anew: its files, still empty, and a line on whose it is.

    Raises:
        TierUnavailable: there is too little shared memory, or none; or something else has that path.
    """
    refuse_foreign(path)
    with _refusals_named(path):
        remove(path)
        refuse_small(path.parent, needed_bytes)
        path.mkdir(mode=0o700)
        (path / OWNER).write_bytes(os.fsencode(store.absolute()) + b"\n")
        for name in (WRITER, DATA):
            (path / name).touch(mode=0o600)
        make_lock_file(path / LOCKS)
    return _made(path)


def renewed(home: Home) -> Home:
    """The same index with a new lock file of LMDB's, without whatever the dead have left in the old one.

    A forked child of the dead may still write into the old one, so that is left to it.
    """
    draft = home.path / (LOCKS + ".new")
    with _refusals_named(home.path):
        make_lock_file(draft)
        draft.rename(home.path / LOCKS)
    return _made(home.path)


@contextlib.contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """What the system refuses in shared memory is told with the place, and what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        raise TierUnavailable(
            "nvme",
            f"the index cannot be made in shared memory: {path}: {error.strerror}; {path.parent} has to be "
            f"writable and to have room (in a read-only container, mount a tmpfs or an emptyDir of medium "
            f"Memory there)",
        ) from error


def _made(path: Path) -> Home:
    home = look(path)
    if home is None:
        raise TierUnavailable("nvme", f"something removes {path} as soon as it is made")
    return home


def remove(path: Path) -> None:
    """Remove the directory, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def refuse_foreign(path: Path) -> None:
    """Refuse to use, or to remove, what has the path of an index and is none of ours.

    Raises:
        TierUnavailable: names it, and what to do.
    """
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(state.st_mode):
        what = "a link"
    elif not stat.S_ISDIR(state.st_mode):
        what = "a file"
    elif state.st_uid != os.geteuid():
        what = f"the directory of user {state.st_uid}"
    else:
        return
    raise TierUnavailable(
        "nvme", f"{path}, where the index has to be, is {what}; find out who has put it there, and remove it"
    )


def refuse_small(place: Path, needed_bytes: int) -> None:
    """Refuse a place that has no room for an index.

    Raises:
        TierUnavailable: says how much is needed, how much is there, and what to do.
    """
    try:
        left_bytes = free_bytes(place)
    except OSError as error:
        raise TierUnavailable(
            "nvme", f"there is no shared memory at {place} for the index: {error.strerror}"
        ) from error
    if left_bytes < needed_bytes:
        raise TierUnavailable(
            "nvme",
            f"shared memory is too small for the index: it may take {needed_bytes} bytes, and {place} has "
            f"{left_bytes} free; give it more (docker: --shm-size, Kubernetes: an emptyDir of medium Memory) "
            f"or choose a smaller capacity, or larger chunks",
        )


def refuse_limited(
    start_bytes: int, full_bytes: int, root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS
) -> None:
    """Refuse an index that this process' memory has no room for, and warn of one that may outgrow it.

    Shared memory counts into the memory of a container: an index that outgrows it ends the process.

    Args:
        start_bytes: what it takes at once.
        full_bytes: what it takes when its store is full.

    Raises:
        TierUnavailable: it does not even fit at the start.
    """
    fix = "give it more memory, or choose a smaller capacity, or larger chunks"
    for group in memory_groups(root, own):
        if group.left_bytes is not None and group.left_bytes < start_bytes:
            raise TierUnavailable(
                "nvme",
                f"this process has too little memory for the index: it takes {start_bytes} bytes at once, "
                f"and {group.file} ({group.limit_bytes} bytes) leaves {max(0, group.left_bytes)}; {fix}",
            )
        if group.limit_bytes < full_bytes:
            logger.warning(
                "nvme: the index may take %d bytes of memory, and %s allows %d for all of this process; %s",
                full_bytes,
                group.file,
                group.limit_bytes,
                fix,
            )
