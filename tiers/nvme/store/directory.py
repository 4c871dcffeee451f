"""The directory of one store: who may use it, what it says about itself, who has it open.

    kvtier.json     format version, store uuid, sizes fixed at creation
    in-use          while somebody has the store open: the boot of the kernel on which that is; else blank
    lock            two bytes, locked and never written; see below
    namespaces/     one file per namespace: its identity field by field, its scope in force
    index/          LMDB
    segments/       the log
    quarantine/     evidence of chunks that failed their checksum

Theory of operation. OPENING_BYTE of `lock` is held alone by whoever opens or closes the store, so that
only one process at a time looks at it as a whole. USERS_BYTE is shared by all who have it open; whoever
gets it alone while opening knows that nobody else uses the store and may rebuild what is broken.

An open that fails takes back what it has made, before it gives up OPENING_BYTE. Whoever waited for that then
holds a lock on a file that is gone; so whoever gets the byte looks whether the path still names its file,
and starts over where it does not.

The index is not synced at each commit. A killed process leaves it whole in the page cache; a power loss
may tear it. So `in-use` names the boot, and an index that was in use on another boot is not trusted. The file
stays when the store is closed and is written in its place, so that a store on a full drive can be opened.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...errors import TierUnavailable
from ..io.files import Files
from ..log.budget import Facts
from ..log.segments import Segments
from .filesystem import COPIES_ON_WRITE
from .namespaces import Namespaces
from .ownership import refuse_foreign, tighten
from .probe import PROBE_PREFIX, examined, overwrite_in_place

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when an older kvtier could misread the directory

OPENING_BYTE, USERS_BYTE = 0, 1
OPENING_WAIT_S = 60.0  # far above the longest rebuild seen; then something else is wrong
CLOSING_WAIT_S = 2.0  # a close that cannot look around leaves the mark, which costs nothing but a rebuild
OPENING_POLL_S = 0.005  # how often a process looks whether the other one has finished opening
OPEN_ATTEMPTS_MAX = 100  # each one lost to another process that took its new store back at that very moment

_MARK_BYTES = 40  # of the mark: a boot's name has 36, and one sector is written as a whole or not at all
_FACTS, _LOCK, _IN_USE = "kvtier.json", "lock", "in-use"
_DIRECTORIES = ("namespaces", "segments", "quarantine")
_EXPECTED = {_LOCK, _FACTS + ".new", "lost+found"}  # in a directory that is not a store yet
_LONGEST = f"namespaces/{'0' * 64}.json.new"  # of all that is ever made in a store
_FILES = (_IN_USE + ".new", _IN_USE, _FACTS + ".new", _FACTS, _LOCK)  # the facts outlive what they stand for


class StoreDirectory:
    """An opened store directory. Blocking; methods may be called from any thread, one at a time."""

    def __init__(
        self, files: Files, root: Path, lock_fd: int, facts: Facts, *, alone: bool, undo: ExitStack
    ) -> None:
        self.files, self.root, self.facts = files, root, facts
        self.segments = Segments(files, root, facts)
        self.namespaces = Namespaces(files, root / "namespaces")
        self.alone = alone  # nobody else had the store open when we opened it
        self._lock_fd = lock_fd
        self._undo = undo  # closes the lock too
        self._closed = False

    @staticmethod
    def open(files: Files, root: Path, new: Facts | None) -> StoreDirectory:
        """Open the store at `root`; others wait until `ready`.

        Args:
            new: the facts of the store to make where there is none; None to make none.

        Raises:
            TierUnavailable: it cannot be used; the message says why and what to do.
        """
        with mapped_os_errors(root):
            return _open(files, root, new)

    @staticmethod
    def look(root: Path) -> Facts | None:
        """Read what the store at `root` says of itself, None where one could be made; changes nothing.

        Raises:
            TierUnavailable: `open` would refuse it.
        """
        with mapped_os_errors(root):
            return _look(root)

    @property
    def index_path(self) -> Path:
        return self.root / "index"

    @property
    def quarantine_path(self) -> Path:
        return self.root / "quarantine"

    def is_there(self) -> bool:
        """Whether the path still names this directory; True where nobody can say."""
        try:
            return os.path.samestat((self.root / _LOCK).stat(), os.fstat(self._lock_fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def index_is_trusted(self) -> bool:
        """Whether the index was closed well, or was in use on this very boot."""
        return self._marked_boot() in ("", self.files.boot_id())

    def mark(self) -> None:
        """Mark the store as in use, durably. It comes before any change of the index, which is not synced."""
        if self._marked_boot() != self.files.boot_id():
            self._write_mark(self.files.boot_id())

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

    def unmark(self) -> None:
        """Say that the index is whole and synced, and that nobody uses it any more."""
        self._write_mark("")

    def _marked_boot(self) -> str:
        try:
            return (self.root / _IN_USE).read_text().strip()
        except FileNotFoundError:
            return ""

    def _write_mark(self, boot: str) -> None:
        path, data = self.root / _IN_USE, boot.ljust(_MARK_BYTES).encode()
        if path.exists():
            self.files.overwrite_small(path, data)
        else:
            self.files.write_small(path, data)

    def give_up(self) -> None:
        """Close before `ready`: a store that this open has made leaves nothing behind. Idempotent."""
        self._closed = True
        self._undo.close()

    def close(self) -> None:
        """Give up every lock; idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self._lock_fd)


@contextmanager
def mapped_os_errors(root: Path) -> Iterator[None]:
    """What the system refuses is a `TierUnavailable` that names the store."""
    try:
        yield
    except OSError as error:
        raise TierUnavailable("nvme", f"{root} cannot be used: {error.strerror or error}") from error


def _open(files: Files, root: Path, new: Facts | None) -> StoreDirectory:
    _known(_look(root), new, root)  # what is refused is not touched
    mount, abilities, warnings = examined(files, root)
    files.direct = abilities.direct
    for warning in warnings:
        logger.warning("nvme: %s", warning)
    made: list[Path] = []
    with ExitStack() as undo:
        undo.callback(_remove_empty, made)
        lock_fd = _locked(files, root, made)
        undo.callback(os.close, lock_fd)
        there = _look(root)
        if there is None:
            undo.callback(_remove_store, root)
        facts = _known(there, new, root)
        if mount.kind in COPIES_ON_WRITE:
            overwrite_in_place(root)  # before anything is made in it
        if there is None:
            facts = _create(files, root, facts)
        for name in _DIRECTORIES:
            (root / name).mkdir(mode=0o700, exist_ok=True)
        tighten(root)
        alone = files.try_lock(lock_fd, USERS_BYTE, exclusive=True)
        return StoreDirectory(files, root, lock_fd, facts, alone=alone, undo=undo.pop_all())


def _known(there: Facts | None, new: Facts | None, root: Path) -> Facts:
    """The facts of the store that is there, or else of the one to be made."""
    facts = there or new
    if facts is None:
        raise TierUnavailable("nvme", f"{root} is no store: it has no {_FACTS}")
    return facts


def _locked(files: Files, root: Path, made: list[Path]) -> int:
    """Make the directory and its lock file where they are missing, and hold OPENING_BYTE.

    Adds the directories to `made`, each before the one around it.
    """
    for _ in range(OPEN_ATTEMPTS_MAX):
        made += [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # taken back since
            lock_fd = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _wait_for_opening(files, lock_fd, root, OPENING_WAIT_S)
                if os.path.samestat((root / _LOCK).stat(), os.fstat(lock_fd)):
                    return lock_fd
            except BaseException:
                os.close(lock_fd)
                raise
            os.close(lock_fd)
    raise TierUnavailable("nvme", f"{root} is removed as often as it is made")


def _remove_store(root: Path) -> None:
    """Remove a store that nobody else has seen; what cannot be removed is in nobody's way."""
    for name in (*_DIRECTORIES, "index"):
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
    facts = _read_facts(root)
    if facts is None and (obstacle := _obstacle(root)) is not None:
        # Another process may have made the store meanwhile: its facts are written first of all.
        facts = _read_facts(root)
        if facts is None:
            raise TierUnavailable("nvme", obstacle)
    return facts


def _obstacle(root: Path) -> str | None:
    """Why no store can be made in a directory that has none."""
    if any((root / name).exists() for name in ("index", "segments")):
        return f"{root / _FACTS} is missing from a store; remove {root}, or choose another path"
    names = {path.name for path in root.iterdir()} - _EXPECTED
    others = sorted(name for name in names if not name.startswith(PROBE_PREFIX))
    if others:
        return f"{root} holds other files ({others[0]}); choose another path, which kvtier has for itself"
    return None


def _read_facts(root: Path) -> Facts | None:
    path = root / _FACTS
    try:
        document = json.loads(path.read_text())
        version = document["format"]
        if version > FORMAT:
            raise TierUnavailable(
                "nvme",
                f"{root} has format {version}, which is newer than this kvtier's {FORMAT}; upgrade kvtier",
            )
        return Facts(bytes.fromhex(document["store"]), document["segment_bytes"], document["index_bytes"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise TierUnavailable("nvme", f"{path} cannot be understood ({error}); remove {root}") from error


def _create(files: Files, root: Path, new: Facts) -> Facts:
    files.reached("creating")
    facts = new._replace(store=uuid.uuid4().bytes)
    document = {"format": FORMAT, **facts._asdict(), "store": facts.store.hex()}
    files.write_small(root / _FACTS, json.dumps(document, indent=1).encode())
    files.sync_directory(root.parent)
    return facts


def _wait_for_opening(files: Files, lock_fd: int, root: Path, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while not files.try_lock(lock_fd, OPENING_BYTE, exclusive=True):
        if time.monotonic() > deadline_s:
            raise TierUnavailable("nvme", f"{root} is being opened by another process for too long")
        time.sleep(OPENING_POLL_S)
