"""The file behind a shared arena: the first process creates it, the last one to attach removes its name.

Layout; every section starts on a page, and the parts of a slot start on multiples of 4 KiB:

    header        magic, format, attached, slot_count, part_bytes, parts, ranks, mappers; a note, see `Arena`
    stores_done   uint32[ranks][slot_count]   stores that have ended, counted modulo 2**32
    loads_done    uint32[ranks][slot_count]   the same for loads
    store_failed  uint8[ranks][slot_count]    whether the last store failed
    slots         slot_count rows of `parts` rank parts

The marks between the header and the slots are one section. The scheduler and the workers of a server map
the file, in whichever order they start:

1. Open it, or create it with O_EXCL, and take flock(LOCK_SH), held until `leave`. Then check that the path
   still names the file: between the open and the lock, another process may have removed it as stale. If so,
   start over.
2. In a critical section (lockf): if the header is blank, make sure that the arena fits into the machine and
   write the header; otherwise compare it. Then count this process as attached. A creator that dies before
   that leaves a blank header, and the next process writes it.
3. The process that attaches last (`mappers`) removes the path. From then on the memory lives as long as a
   process maps it: killing all of them leaves nothing behind.

If LOCK_EX can be had at once, nobody uses the file: its server was killed before all processes had attached.
Every start removes such files.

flock belongs to the open file, so that one process can attach twice. lockf belongs to the process and ends
when it closes any descriptor of the file: threads take a lock of their own around it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import TierUnavailable
from .memory import Room, memory_room, shared_memory_room

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

PART_ALIGNMENT_BYTES = 4096  # direct I/O requires it of memory

FORMAT = 1

OPEN_ATTEMPTS_MAX = 100  # each fails only if another process removed the file at that moment

LOCK_WAIT_S = 10.0  # a critical section takes milliseconds, unless a process in it is stopped

LOCK_POLL_S = 0.001

NAME_LENGTH_MAX = 128  # characters; a file name may have 255 bytes

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

_MAGIC = b"kvtarena"
_HEADER = struct.Struct("<8sIIQQIII")
_ATTACHED = struct.Struct("<I")
_ATTACHED_OFFSET = 12
NOTE_OFFSET = 64  # behind the header, on the same page

_process_gate = threading.Lock()  # around every lockf, and every open and close of an arena's file


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Where things lie in an arena; the same in all processes that share it."""

    slot_count: int
    part_bytes: int
    parts: int
    ranks: int
    mappers: int

    def __post_init__(self) -> None:
        assert min(self.slot_count, self.part_bytes, self.mappers) > 0, "an arena holds something"
        assert self.parts in (1, self.ranks), "ranks have a part each, or all of them the same one"

    @property
    def aligned_part_bytes(self) -> int:
        return _rounded_up(self.part_bytes, PART_ALIGNMENT_BYTES)

    @property
    def slot_bytes(self) -> int:
        return self.parts * self.aligned_part_bytes

    @property
    def counters_bytes(self) -> int:
        return self.ranks * self.slot_count * 4

    @property
    def slots_offset(self) -> int:
        marks_bytes = 2 * self.counters_bytes + self.ranks * self.slot_count
        return _rounded_up(mmap.PAGESIZE + marks_bytes, mmap.PAGESIZE)

    @property
    def size_bytes(self) -> int:
        return self.slots_offset + self.slot_count * self.slot_bytes

    def header(self, attached: int) -> bytes:
        fields = (self.slot_count, self.part_bytes, self.parts, self.ranks, self.mappers)
        return _HEADER.pack(_MAGIC, FORMAT, attached, *fields)

    def refuse_beyond(self, *rooms: Room) -> None:
        """Refuse an arena that does not fit. Pages are allocated on first touch, which is too late to refuse.

        Raises:
            TierUnavailable: it does not fit; the message says what would.
        """
        room = min(rooms, key=lambda room: room.left_bytes)
        if self.size_bytes > room.left_bytes:
            raise TierUnavailable(
                "pinned", f"the arena needs {shown(self.size_bytes)}, but {self._advice(room)}"
            )

    def _advice(self, room: Room) -> str:
        left = f"{room.place} has only {shown(room.left_bytes)} free"
        fit_count = max(0, room.left_bytes - self.slots_offset) // self.slot_bytes
        if fit_count == 0:
            return f"{left}, too little for one chunk of {self.slot_bytes} bytes; {room.remedy}"
        fit = shown(fit_count * self.slot_bytes)
        return f'{left}; lower "capacity" of the pinned tier to "{fit}", or {room.remedy}'

    def __str__(self) -> str:
        parts = f"{self.parts} x {self.part_bytes} bytes"
        return f"{self.slot_count} slots of {parts} for {self.ranks} ranks in {self.mappers} processes"


class ArenaFile:
    """One attachment to the file of a shared arena.

    Attributes:
        fd: the file, locked with LOCK_SH.
        order: how many had attached before.
    """

    def __init__(self, path: Path, fd: int, order: int) -> None:
        self.fd = fd
        self.order = order
        self._path = path

    @classmethod
    def attach(cls, name: str, layout: ArenaLayout) -> ArenaFile:
        """Make or find the file of the server of this name.

        Raises:
            TierUnavailable: it does not fit, or the file has another layout.
            OSError: shared memory cannot be used.
        """
        path = arena_path(name)
        for _ in range(OPEN_ATTEMPTS_MAX):
            with _process_gate:
                fd = _open_or_create(path)
                if fd is None:
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH)
                    if _names(path, fd):
                        return cls(path, fd, _count_in(fd, path, layout))
                except BaseException:
                    _let_go(fd, path)
                    raise
                os.close(fd)
        raise TierUnavailable("pinned", f"{path} keeps being removed by other processes")

    def leave(self) -> None:
        """Detach, and uncount this process if others still attach; the last one to leave removes the file."""
        with _process_gate:
            with suppress(OSError), _critical_section(self.fd):  # the next start removes what is left
                if _names(self._path, self.fd):
                    os.pwrite(self.fd, _ATTACHED.pack(_attached(self.fd) - 1), _ATTACHED_OFFSET)
            _let_go(self.fd, self._path)


def arena_path(name: str) -> Path:
    """The path of a server's arena; different names have different files."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:NAME_LENGTH_MAX]
    if safe != name:
        safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return SHARED_MEMORY / f"kvtier-{safe}.arena"


def sweep_stale() -> None:
    """Remove the arenas of servers that were killed before all their processes had attached."""
    for path in SHARED_MEMORY.glob("kvtier-*.arena"):
        with _process_gate, suppress(OSError):  # in use, another user's, or gone already
            fd = os.open(path, _FLAGS)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _names(path, fd):
                    path.unlink()
                    logger.info("pinned: removed %s, left by a server that was killed", path)
            finally:
                os.close(fd)


def shown(size_bytes: int) -> str:
    """A size, rounded down, as the config accepts it."""
    if size_bytes >= 10 << 30:
        return f"{size_bytes * 10 // (1 << 30) / 10:.1f}GiB"
    return f"{size_bytes >> 20}MiB" if size_bytes >= 10 << 20 else f"{size_bytes >> 10}KiB"


def _open_or_create(path: Path) -> int | None:
    with suppress(FileExistsError):
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    with suppress(FileNotFoundError):  # removed in between
        return os.open(path, _FLAGS)
    return None


def _count_in(fd: int, path: Path, layout: ArenaLayout) -> int:
    """Attach to the file; return how many processes had attached before."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        raise TierUnavailable("pinned", f"{path} belongs to user {status.st_uid}, not to this server's user")
    with _critical_section(fd):
        if not any(os.pread(fd, _HEADER.size, 0)):
            layout.refuse_beyond(memory_room(), shared_memory_room(SHARED_MEMORY))
            os.ftruncate(fd, layout.size_bytes)
            os.pwrite(fd, layout.header(attached=0), 0)
        header, order = os.pread(fd, _HEADER.size, 0), _attached(fd)
        if header != layout.header(order):
            raise TierUnavailable("pinned", f"{path} holds {_described(header)}; this process has {layout}")
        os.pwrite(fd, _ATTACHED.pack(order + 1), _ATTACHED_OFFSET)
        if order + 1 == layout.mappers:
            path.unlink()
        return order


def _attached(fd: int) -> int:
    (attached,) = _ATTACHED.unpack(os.pread(fd, _ATTACHED.size, _ATTACHED_OFFSET))
    return int(attached)


def _described(header: bytes) -> str:
    magic, version, _, *fields = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
    if (magic, version) != (_MAGIC, FORMAT):
        return "an arena of another version of kvtier"
    return str(ArenaLayout(*fields))


def _let_go(fd: int, path: Path) -> None:
    """Close the file, and remove it if nobody else has it open."""
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, fd):
                path.unlink()
    finally:
        os.close(fd)


def _names(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextmanager
def _critical_section(fd: int) -> Iterator[None]:
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while not _try_lock(fd):
        if time.monotonic() > deadline_s:
            raise TimeoutError(errno.ETIMEDOUT, f"no lock on the arena within {LOCK_WAIT_S:.0f} s")
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves the choice open
        return False
    return True


def _rounded_up(size_bytes: int, unit_bytes: int) -> int:
    return -(-size_bytes // unit_bytes) * unit_bytes
