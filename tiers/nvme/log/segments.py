"""The segment files of one store: opened, locked, made and removed.

Two bytes of every segment file are locked as signs between processes; nothing is written there for that. A
killed process gives up both.

    CLAIM_BYTE     held alone by whoever appends to, reclaims, mends or removes the segment
    READERS_BYTE   shared by whoever reads from it, held alone by whoever is about to overwrite it
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..format.codec import SegmentName
from ..format.segment_file import SegmentFile
from ..index.records import SegmentState
from ..io.files import Files
from .budget import Facts

if TYPE_CHECKING:  # the command line looks at a store's facts, and LMDB takes long to import
    from ..index.environment import Index

CLAIM_BYTE = 1
READERS_BYTE = 0
NUMBERS_MAX = 1 << 32  # what the format has room for


class Segments:
    """Opens, locks, makes and removes segment files. Every method blocks; any thread, at the same time.

    A file descriptor that a method returns is the caller's to close.
    """

    def __init__(self, files: Files, root: Path, facts: Facts) -> None:
        self.files, self.facts = files, facts
        self._root = root

    def path(self, number: int) -> Path:
        return self._root / "segments" / f"{number:08d}.seg"

    def paths(self) -> dict[int, Path]:
        """The segment files that exist, by number."""
        return {number: path for number, path in self._named() if path.is_file() and not path.is_symlink()}

    def taken_numbers(self) -> set[int]:
        """Numbers that new segments cannot have, whatever it is that bears them."""
        return {number for number, _ in self._named()}

    def _named(self) -> Iterator[tuple[int, Path]]:
        for path in (self._root / "segments").glob("*.seg"):
            number = int(path.stem) if path.stem.isdecimal() else NUMBERS_MAX
            if number < NUMBERS_MAX and path == self.path(number):
                yield number, path

    def exists(self, number: int) -> bool:
        return self.path(number).exists()

    def name(self, number: int, generation: int) -> SegmentName:
        return SegmentName(self.facts.store, number, generation)

    def file(self, fd: int, number: int, generation: int) -> SegmentFile:
        """One life of the segment, through a file that the caller has open."""
        return SegmentFile(self.files, fd, self.name(number, generation), self.facts.segment_bytes)

    # Opening and locking.

    def open(self, number: int, *, write: bool = False, create: bool = False) -> int:
        """Open the segment's file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.files.open_data(self.path(number), write=write, create=create)

    @contextlib.contextmanager
    def opened(
        self, number: int, generation: int = 0, *, write: bool = False
    ) -> Iterator[SegmentFile | None]:
        """Open the segment's file for a while, without a lock; None where there is none."""
        try:
            fd = self.open(number, write=write)
        except FileNotFoundError:
            yield None
            return
        try:
            yield self.file(fd, number, generation)
        finally:
            self.files.close(fd)

    def lock(self, number: int, *lock_bytes: int, create: bool = False) -> int | None:
        """Open the file and lock these bytes for us alone; None where one is taken or the file is gone.

        Gone it may also be between the open and the locks, removed by whoever had it locked until then.
        """
        with contextlib.ExitStack() as undo:
            try:
                fd = self.open(number, write=True, create=create)
            except FileNotFoundError:
                if create:  # it is the directory that is gone
                    raise
                return None
            undo.callback(self.files.close, fd)
            if create:
                self.files.reached("created a segment file")
            if not all(self.files.try_lock(fd, byte, exclusive=True) for byte in lock_bytes):
                return None
            if not self.files.is_at(fd, self.path(number)):
                return None
            undo.pop_all()
            return fd

    def claim(self, number: int, *, create: bool = False) -> int | None:
        """Open the file and claim it; None where another has claimed it or it is gone."""
        return self.lock(number, CLAIM_BYTE, create=create)

    @contextlib.contextmanager
    def claimed(self, number: int, generation: int = 0) -> Iterator[SegmentFile | None]:
        """Claim the segment for a while; None where another has claimed it or its file is gone."""
        fd = self.claim(number)
        try:
            yield None if fd is None else self.file(fd, number, generation)
        finally:
            if fd is not None:
                self.files.close(fd)

    # Room.

    def is_allocated(self, fd: int) -> bool:
        return self.files.size(fd) >= self.facts.segment_bytes

    def allocate(self, number: int, fd: int) -> None:
        """Take the drive's room for the whole file, unless that was done before.

        Raises:
            OSError: the file system refused.
        """
        if not self.is_allocated(fd):
            self.files.allocate(fd, self.facts.segment_bytes)

    def sync_names(self) -> None:
        """Make the names of all files durable."""
        self.files.sync_directory(self._root / "segments")

    def unlink(self, number: int) -> None:
        self.files.unlink(self.path(number))

    def remove(self, number: int, fd: int) -> None:
        """Remove the file; its room is free at once, even while some process has it open."""
        self.files.truncate(fd, 0)
        self.unlink(number)
        self.files.reached("removed a segment file")

    def free_bytes(self) -> int:
        """Bytes that are free on the file system of the store."""
        return self.files.free_bytes(self._root)


def sync_open(segments: Segments, index: Index, other_than: Collection[int] = ()) -> None:
    """Make durable what is in all open segments but these; what is sealed was synced before.

    Raises:
        OSError, TierError: some of it may not be.
    """
    with index.read() as txn:
        numbers = [number for number, _ in txn.by_age(SegmentState.OPEN) if number not in other_than]
    for number in numbers:
        with segments.opened(number) as file:
            if file is not None:  # else its chunks are gone, and whoever loads one will notice
                segments.files.sync_data(file.fd)
