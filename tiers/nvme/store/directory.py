"""The directory of one store: who may use it, what it says about itself, who has it open.

    kvtier.json     format version, store uuid, sizes fixed at creation (`facts.py`)
    in-use          while somebody has the store open: by whom, and where its index is (`mark.py`)
    lock            bytes that are locked; its contents count the steps of an opening
    checkpoint      a copy of the index as it was some time ago (`checkpoint.py`)
    namespaces/     one file per namespace: its identity field by field, its scope in force
    segments/       the log
    quarantine/     evidence of chunks that failed their checksum

Theory of operation. OPENING_BYTE of `lock` is held alone by whoever opens or closes the store, so that
only one process at a time looks at it as a whole. USERS_BYTE is shared by all who have it open; whoever
gets it alone while opening knows that nobody else uses the store and may make its index anew. The other bytes
are held for a while by whoever does what only one process at a time may do.

An open that fails takes back what it has made, before it gives up OPENING_BYTE. Whoever waited for that then
holds a lock on a file that is gone; so whoever gets the byte looks whether the path still names its file,
and starts over where it does not.

The index lies in shared memory. Which one is the store's, `in-use` says, which only who is alone writes.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...base import Failure
from ...errors import TierError, TierUnavailable
from ..index.errors import IndexBusy, IndexFull, IndexStarved
from ..index.memory import SHARED_MEMORY, Home, home_path
from ..io.files import Files
from ..io.kernel import NOT_SUPPORTED
from ..log.budget import Facts
from ..log.segments import Segments
from ..volume.filesystem import COPIES_ON_WRITE
from ..volume.mounts import mount_of, refuse_dangling
from ..volume.ownership import refuse_foreign, tighten
from ..volume.probe import PROBE_PREFIX, examined, existing, overwrite_in_place
from .facts import FACTS, REPAIR, read_facts, write_facts
from .mark import IN_USE
from .namespaces import Namespaces

logger = logging.getLogger(__name__)

OPENING_BYTE, USERS_BYTE = 0, 1
CATCH_UP_BYTE, NAMESPACES_BYTE, QUARANTINE_BYTE, CHECKPOINT_BYTE = 2, 3, 4, 5
OPENING_WAIT_S = 60.0  # without a step forward of who opens; far above the longest step seen
CLOSING_WAIT_S = 2.0  # a close that cannot look around leaves the mark, which costs a look at the log
CLAIM_WAIT_S = 2.0  # what is done under a claim is a few small files; who holds it longer is paused
OPENING_POLL_S = 0.005  # how often a process looks whether the other one has finished opening
OPEN_ATTEMPTS_MAX = 100  # each one lost to another process that took its new store back at that very moment

CHECKPOINT = "checkpoint"
LOCK = "lock"
_DIRECTORIES = ("namespaces", "segments", "quarantine")
_EXPECTED = {LOCK, FACTS + ".new", "lost+found"}  # in a directory that is not a store yet
_LONGEST = f"namespaces/{'0' * 64}.json.new"  # of all that is ever made in a store
_SMALL = (IN_USE, CHECKPOINT, FACTS)  # the facts outlive what they stand for
_FILES = (*(name + new for name in _SMALL for new in (".new", "")), LOCK)
_STEPS = struct.Struct("<Q")
STEPS_MAX = 1 << 64  # of the count: a damaged one may be there already


class OutOfReach(TierUnavailable):
    """The store is whole, but cannot be used from here: its checkpoint can be looked at."""


class StoreGone(TierError):
    """The store that was opened is not at its path any more."""

    failure = Failure.GONE


class StoreDirectory:
    """An opened store directory. Blocking; methods may be called from any thread, one at a time."""

    def __init__(
        self,
        files: Files,
        root: Path,
        lock_fd: int,
        facts: Facts,
        *,
        alone: bool,
        place: Path,
        undo: ExitStack,
    ) -> None:
        self.files, self.root, self.facts = files, root, facts
        self.home_path = home_path(place, facts.store, lock_fd)
        self.home: Home | None = None  # of the index, once it is open
        self.restored: tuple[str, int] | None = (
            None  # the checkpoint that the index was made from, its commit
        )
        self.segments = Segments(files, root, facts)
        self.namespaces = Namespaces(files, root / "namespaces")
        self.alone = alone  # nobody else had the store open when we opened it
        self._lock_fd = lock_fd
        self._undo = undo  # closes the lock too
        self._closed = False

    @staticmethod
    def open(files: Files, root: Path, new: Facts | None, place: Path = SHARED_MEMORY) -> StoreDirectory:
        """Open the store at `root`; others wait until `ready`.

        Args:
            new: the facts of the store to make where there is none; None to make none.
            place: where its index lies.

        Raises:
            TierUnavailable: it cannot be used; the message says why and what to do.
        """
        with mapped_os_errors(root):
            return _open(files, root, new, place)

    @staticmethod
    def look(root: Path) -> Facts | None:
        """Read what the store at `root` says of itself, None where one could be made; changes nothing.

        Raises:
            TierUnavailable: `open` would refuse it.
        """
        with mapped_os_errors(root):
            return _look(root)

    @property
    def quarantine_path(self) -> Path:
        return self.root / "quarantine"

    def is_there(self) -> bool:
        """Whether the path still names this directory; True where nobody can say."""
        try:
            return os.path.samestat((self.root / LOCK).stat(), os.fstat(self._lock_fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def is_removed(self) -> bool:
        """Whether this directory is gone for good, and not only from its path."""
        return os.fstat(self._lock_fd).st_nlink == 0

    def refuse_gone(self) -> None:
        """Raise `StoreGone` where the path may name another store by now; before changes that go by path."""
        if not self.is_there():
            raise StoreGone("nvme", f"{self.root} was removed or moved while it was in use")

    @property
    def checkpoint_path(self) -> Path:
        return self.root / CHECKPOINT

    @property
    def lock_id(self) -> tuple[int, int]:
        """The lock file's device and inode: a copy of the store has another."""
        state = os.fstat(self._lock_fd)
        return state.st_dev, state.st_ino

    def step(self) -> None:
        """Show those who wait that the opening goes on."""
        with suppress(OSError):  # on a full drive they wait without a sign
            steps = (_steps(self._lock_fd) + 1) % STEPS_MAX
            os.pwrite(self._lock_fd, _STEPS.pack(steps), 0)

    def try_claim(self, byte: int) -> bool:
        """Claim what only one process may do at a time; False where another has it."""
        return self.files.try_lock(self._lock_fd, byte, exclusive=True)

    def unclaim(self, byte: int) -> None:
        self.files.unlock(self._lock_fd, byte)

    @contextmanager
    def claimed(self, byte: int) -> Iterator[None]:
        """Claim what only one process may do at a time, for a while.

        Raises:
            TierUnavailable: another process has it for too long.
            StoreGone: nobody who uses what is at the path now would be kept out.
        """
        self.refuse_gone()
        deadline_s = time.monotonic() + CLAIM_WAIT_S
        while not self.try_claim(byte):
            if time.monotonic() > deadline_s:
                raise TierUnavailable(
                    "nvme", f"{self.root} is held by another process, which is paused or slow"
                )
            time.sleep(OPENING_POLL_S)
        try:
            yield
        finally:
            self.unclaim(byte)

    def ready(self) -> None:
        """End the opening: let others open the store."""
        self.files.try_lock(self._lock_fd, USERS_BYTE, exclusive=False)
        self.files.unlock(self._lock_fd, OPENING_BYTE)

    def last_user_leaving(self) -> bool:
        """Whether nobody else has the store open; keeps others from opening it until `close`."""
        try:
            _wait_for_opening(self.files, self._lock_fd, self.root, CLOSING_WAIT_S)
        except TierUnavailable:
            return False
        return self.files.try_lock(self._lock_fd, USERS_BYTE, exclusive=True)

    def give_up(self) -> None:
        """Close before `ready`: a store that this open has made leaves nothing behind. Idempotent."""
        self._closed = True
        self._undo.close()

    def close(self) -> None:
        """Give up every lock; idempotent."""
        if not self._closed:
            self._closed = True
            self.files.close(self._lock_fd)


def look_only(files: Files, root: Path) -> StoreDirectory:
    """The directory of a store that is there, without any lock on it.

    Raises:
        TierUnavailable: there is none, or it may not be looked at.
    """
    with mapped_os_errors(root), ExitStack() as undo:
        facts = _known(_look(root), None, root)
        lock_fd = os.open(root / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(files.close, lock_fd)
        files.direct = files.direct and _opens_direct(files, root / LOCK)
        return StoreDirectory(
            files, root, lock_fd, facts, alone=False, place=SHARED_MEMORY, undo=undo.pop_all()
        )


def _opens_direct(files: Files, path: Path) -> bool:
    """Whether a file can be opened past the page cache; reading is all that is asked for."""
    try:
        files.close(files.open_data(path))
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return False
    return True


@contextmanager
def mapped_os_errors(root: Path) -> Iterator[None]:
    """What the system refuses is a `TierUnavailable` that names the store."""
    try:
        yield
    except OSError as error:
        kind = OutOfReach if error.errno == errno.EROFS else TierUnavailable
        where = error.filename or root  # which file of the store, or of its index, where the system says it
        fix = "; raise RLIMIT_FSIZE (ulimit -f)" if error.errno == errno.EFBIG else ""
        raise kind("nvme", f"{where} cannot be used: {error.strerror or error}{fix}") from error
    except IndexBusy as error:
        message = f"{root} is held by another process, which is paused or stuck; let it go on, or end it"
        raise TierUnavailable("nvme", message) from error
    except IndexStarved as error:
        raise TierUnavailable("nvme", f"{root} cannot be used for now: {error}") from error
    except IndexFull as error:
        raise TierUnavailable("nvme", f"{root} cannot be used: shared memory is full ({error})") from error


def _open(files: Files, root: Path, new: Facts | None, place: Path) -> StoreDirectory:
    _known(_look(root), new, root)  # what is refused is not touched
    if new is None and (mount := mount_of(existing(root))).is_read_only:
        raise OutOfReach("nvme", f"{root} cannot be changed: Read-only {mount.kind} at {mount.point}")
    mount, abilities, warnings = examined(files, root)
    files.direct = abilities.direct
    for warning in warnings:
        logger.warning("nvme: %s", warning)
    made: list[Path] = []
    with ExitStack() as undo:
        undo.callback(_remove_empty, made)
        lock_fd = _locked(files, root, made)
        undo.callback(files.close, lock_fd)
        there = _look(root)
        if there is None:
            undo.callback(_remove_store, root)
        facts = _known(there, new, root)
        if mount.kind in COPIES_ON_WRITE:
            overwrite_in_place(root)  # before anything is made in it
        if there is None:
            facts = write_facts(files, root, facts)
        for name in _DIRECTORIES:
            (root / name).mkdir(mode=0o700, exist_ok=True)
        tighten(root)
        alone = files.try_lock(lock_fd, USERS_BYTE, exclusive=True)
        return StoreDirectory(files, root, lock_fd, facts, alone=alone, place=place, undo=undo.pop_all())


def _known(there: Facts | None, new: Facts | None, root: Path) -> Facts:
    """The facts of the store that is there, or else of the one to be made."""
    facts = there or new
    if facts is None:
        raise TierUnavailable("nvme", f"{root} is no store: it has no {FACTS}")
    return facts


def _locked(files: Files, root: Path, made: list[Path]) -> int:
    """Make the directory and its lock file where they are missing, and hold OPENING_BYTE.

    Adds the directories to `made`, each before the one around it.
    """
    for _ in range(OPEN_ATTEMPTS_MAX):
        made += [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # taken back since
            lock_fd = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _wait_for_opening(files, lock_fd, root, OPENING_WAIT_S)
                if os.path.samestat((root / LOCK).stat(), os.fstat(lock_fd)):
                    return lock_fd
            except BaseException:
                os.close(lock_fd)
                raise
            os.close(lock_fd)
    raise TierUnavailable("nvme", f"{root} is removed as often as it is made")


def _remove_store(root: Path) -> None:
    """Remove a store that nobody else has seen; what cannot be removed is in nobody's way."""
    for name in _DIRECTORIES:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _FILES:
        with suppress(OSError):
            (root / name).unlink()


def _remove_empty(paths: Iterable[Path]) -> None:
    """Remove directories, each before the one around it, unless somebody uses them by now."""
    for path in paths:
        with suppress(OSError):
            path.rmdir()


def _look(root: Path) -> Facts | None:
    try:
        refuse_dangling(root)
        (root / _LONGEST).exists()  # no answer matters, but the error that names below the root are too long
        if not root.exists():
            return None
        if not root.is_dir():
            raise TierUnavailable("nvme", f"{root} is not a directory")
        facts = _facts_or_room(root)
    except PermissionError:
        refuse_foreign(root, is_store=False)
        raise
    # What is in it goes before its mode: a directory of something else is not to be made fit for kvtier.
    refuse_foreign(root, is_store=facts is not None)
    return facts


def _facts_or_room(root: Path) -> Facts | None:
    """The facts of the store that is there; None where one could be made."""
    facts = read_facts(root)
    if facts is None and (obstacle := _obstacle(root)) is not None:
        # Another process may have made the store meanwhile: its facts are written first of all.
        facts = read_facts(root)
        if facts is None:
            raise TierUnavailable("nvme", obstacle)
    return facts


def _obstacle(root: Path) -> str | None:
    """Why no store can be made in a directory that has none."""
    if any((root / name).exists() for name in ("namespaces", "segments")):
        return f"{root / FACTS} is missing from a store; {REPAIR}; or remove {root}, or choose another path"
    names = {path.name for path in root.iterdir()} - _EXPECTED
    others = sorted(name for name in names if not name.startswith(PROBE_PREFIX))
    if others:
        return f"{root} holds other files ({others[0]}); choose another path, which kvtier has for itself"
    return None


def _wait_for_opening(files: Files, lock_fd: int, root: Path, wait_s: float) -> None:
    """Get OPENING_BYTE; wait for as long as whoever has it goes forward."""
    steps, deadline_s = _steps(lock_fd), time.monotonic() + wait_s
    while not files.try_lock(lock_fd, OPENING_BYTE, exclusive=True):
        now_s = time.monotonic()
        if (gone := _steps(lock_fd)) != steps:
            steps, deadline_s = gone, now_s + wait_s
        if now_s > deadline_s:
            raise TierUnavailable(
                "nvme", f"{root} is being opened by another process, which did not go on for {wait_s:.0f} s"
            )
        time.sleep(OPENING_POLL_S)


def _steps(lock_fd: int) -> int:
    data = os.pread(lock_fd, _STEPS.size, 0)
    return int(_STEPS.unpack(data.ljust(_STEPS.size, b"\0"))[0])
