"""The directory of a user's notice boards, and who may stand in it.

    /dev/shm/kvtier-live-<user id>/     0700, the user's own
        <pid>-<random>/                 of one engine, which locks the directory for as long as it lives
            board.json, history.jsonl   each replaced as a whole

A board whose lock can be had is of an engine that was killed; the next engine to start removes it. The last
to leave removes the home. Memory only: no drive is written, and a reboot forgets all.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "kvtier-live-"
BOARD, HISTORY = "board.json", "history.jsonl"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ATTEMPTS_MAX = 10  # each fails only if another engine has just removed what this one made


def home_of(user: int, shared_memory: Path = SHARED_MEMORY) -> Path:
    return shared_memory / f"{PREFIX}{user}"


def is_safe(home: Path) -> bool:
    """Whether a home is what it seems: a directory of the user in its name, closed to all others."""
    try:
        found = home.lstat()
    except OSError:
        return False
    own = home.name == f"{PREFIX}{found.st_uid}"
    return own and stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077


def boards_in(home: Path) -> Iterator[Path]:
    """The boards of a home, also of engines that were killed; none where it is not safe."""
    if not is_safe(home):
        return
    with suppress(OSError):
        yield from sorted(path for path in home.iterdir() if path.is_dir() and not path.is_symlink())


def is_held(board: Path) -> bool:
    """Whether the board's engine lives."""
    with suppress(OSError), _locked(board, fcntl.LOCK_SH):
        return False
    return board.is_dir()


def sweep(home: Path) -> None:
    """Remove the boards of engines that were killed."""
    for board in boards_in(home):
        # Under the lock: one that was just made waits for it, and is then made anew.
        with suppress(OSError), _locked(board, fcntl.LOCK_EX):
            shutil.rmtree(board, ignore_errors=True)


class Place:
    """A board of this process, held until `leave`.

    Raises:
        OSError: there is no shared memory, or the home is not safe.
    """

    def __init__(self, shared_memory: Path = SHARED_MEMORY) -> None:
        self._home = home_of(os.getuid(), shared_memory)
        for _ in range(ATTEMPTS_MAX):
            with suppress(FileNotFoundError):  # another engine was the last to leave, or swept too early
                self.path, self._fd = self._taken()
                break
        else:
            raise OSError(f"{self._home} comes and goes")
        sweep(self._home)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the board."""
        new = self.path / f"{name}.new"
        new.write_bytes(data)
        new.rename(self.path / name)

    def leave(self) -> None:
        """Remove the board, and the home behind the last one."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)
        with suppress(OSError):
            self._home.rmdir()

    def _taken(self) -> tuple[Path, int]:
        self._home.mkdir(mode=0o700, exist_ok=True)
        if not is_safe(self._home):
            raise PermissionError(f"{self._home} is not a directory of this user alone")
        path = self._home / f"{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        fd = os.open(path, _FLAGS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            path.stat()  # before the lock another engine may have taken it for one of the dead
        except BaseException:
            os.close(fd)
            raise
        return path, fd


@contextmanager
def _locked(board: Path, how: int) -> Iterator[None]:
    """Lock a board for a moment.

    Raises:
        OSError: its engine holds it, or there is none.
    """
    fd = os.open(board, _FLAGS)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
