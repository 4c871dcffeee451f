"""Parts of a large chunk, each written or read on a lane of its own.

As pieces they bound the bytes in flight, and all lanes work on one chunk. The first part answers for the
chunk: it alone names it and says how it went, once all parts have run. Where one part fails the chunk has
failed, and the parts that come after do nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, NamedTuple

from ...base import Buffer, ChunkKey, Failure
from ...errors import TierError
from .blocks import BLOCK_BYTES, parts_of, write_all
from .clock import now_s
from .files import Files
from .pieces import Checksum, P, ReadPiece, Source, Tails, Wanted, Written, as_os_error, wrong


class WritePart:
    """One part of a chunk: its checksum and one write."""

    def __init__(self, write: _Write, number: int) -> None:
        self._write, self._number = write, number
        self.chunks: Sequence[tuple[ChunkKey, Buffer]] = () if number else ((write.key, write.buffer),)
        self.error: OSError | None = None  # of this part

    def __call__(self) -> int:
        """Write; returns the bytes that were written."""
        write, part = self._write, self._write.parts[self._number]
        if write.has_failed:
            return 0
        buffer = write.buffer[part]
        try:
            crc = write.checksum.of_part(buffer)
            memory = Tails(1 if len(buffer) % BLOCK_BYTES else 0).written(buffer)
            write_all(write.files, write.fd, memory, write.block * BLOCK_BYTES + part.start)
        except (OSError, MemoryError) as error:
            self.error = as_os_error(error)
            write.has_failed = True
            return 0
        write.sums[self._number] = crc
        return sum(map(len, memory))

    @property
    def written(self) -> Sequence[Written]:
        """The chunk, at its first part, if all went well."""
        return () if self._number else self._write.written()


class _Write:
    """What the parts of a write share."""

    def __init__(
        self,
        files: Files,
        fd: int,
        checksum: Checksum,
        block: int,
        chunk: tuple[ChunkKey, Buffer],
        most_bytes: int,
    ) -> None:
        self.files, self.fd, self.checksum, self.block = files, fd, checksum, block
        self.key, self.buffer = chunk
        self.parts = parts_of(len(self.buffer), most_bytes)
        # Changed on lanes, by single operations of the interpreter:
        self.sums: list[int | None] = [None] * len(self.parts)
        self.has_failed = False

    def written(self) -> Sequence[Written]:
        sums = [
            (crc, part.stop - part.start)
            for crc, part in zip(self.sums, self.parts, strict=True)
            if crc is not None
        ]
        if len(sums) < len(self.parts):
            return ()
        crc = self.checksum.of_parts(self.key, sums)
        return (Written(self.key, self.block, len(self.buffer), crc, now_s()),)


def write_parts(
    files: Files,
    fd: int,
    checksum: Checksum,
    block: int,
    chunk: tuple[ChunkKey, Buffer],
    most_bytes: int,
) -> list[WritePart]:
    """The parts of a chunk that is written from `block` on, each at most so large."""
    write = _Write(files, fd, checksum, block, chunk, most_bytes)
    return [WritePart(write, number) for number in range(len(write.parts))]


class ReadPart(Generic[P]):
    """One part of a chunk: one read, and its checksum; the last one to run checks the chunk."""

    def __init__(self, read: _Read[P], number: int) -> None:
        self._read, self._number = read, number
        # The result, at the first part: as that of a `ReadPiece` of this one chunk.
        self.chunks: Sequence[Wanted[P]] = () if number else (read.wanted,)
        self.failed: dict[int, Failure] = {} if number else read.failed
        self.errors: list[OSError | TierError] = [] if number else read.errors
        self.unreadable: set[int] = set() if number else read.unreadable

    def __call__(self) -> int:
        """Read; returns the bytes that were read."""
        return self._read.run(self._number)


class _Stretch(NamedTuple):
    """Where a part lies. It has no checksum that would prove it alone."""

    segment: int
    generation: int
    block: int
    length_bytes: int
    checksum: int = 0


class _Piece(ReadPiece[_Stretch]):
    """Reads one part and keeps the checksum of what it found, None where it found too little."""

    sum: int | None = None

    def _check(self, position: int, wanted: Wanted[_Stretch], *, complete: bool) -> None:
        self.sum = self._checksum.of_part(wanted.buffer) if complete else None


class _Read(Generic[P]):
    """What the parts of a read share."""

    def __init__(
        self, files: Files, source: Source, checksum: Checksum, wanted: Wanted[P], most_bytes: int
    ) -> None:
        self._source, self._checksum, self.wanted = source, checksum, wanted
        self._parts = parts_of(len(wanted.buffer), most_bytes)
        self.pieces = [_Piece(files, source, checksum, [_wanted_part(wanted, part)]) for part in self._parts]
        self.failed: dict[int, Failure] = {}
        self.errors: list[OSError | TierError] = []
        self.unreadable: set[int] = set()
        self._lock = threading.Lock()
        # Mutable state, under the lock.
        self._left = len(self.pieces)
        self._has_failed = False

    def run(self, number: int) -> int:
        piece = self.pieces[number]
        moved_bytes = 0 if self._has_failed else piece()
        with self._lock:
            self._has_failed |= bool(piece.failed)
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._settle()
        return moved_bytes

    def _settle(self) -> None:
        """Say how it went: by the worst that a part has met, else by the checksum of all of them."""
        failures = [piece for piece in self.pieces if piece.failed]
        if failures:
            worst = min(failures, key=_rank)
            self.failed.update(worst.failed)
            self.errors.extend(worst.errors)
            self.unreadable.update(worst.unreadable)
            return
        sums = [
            (piece.sum, part.stop - part.start)
            for piece, part in zip(self.pieces, self._parts, strict=True)
            if piece.sum is not None
        ]
        right = len(sums) == len(self.pieces) and (
            self._checksum.of_parts(self.wanted.key, sums) == self.wanted.place.checksum
        )
        if not right:
            self.failed[0] = wrong(self._source, self.wanted)


def _rank(piece: _Piece) -> int:
    """What has moved may be read elsewhere; then, what the drive says of a bad place; then what passes."""
    if Failure.MISSING in piece.failed.values():
        return 0
    return 1 if piece.unreadable else 2


def _wanted_part(wanted: Wanted[P], part: slice) -> Wanted[_Stretch]:
    place = wanted.place
    first_block = place.block + part.start // BLOCK_BYTES
    stretch = _Stretch(place.segment, place.generation, first_block, part.stop - part.start)
    return Wanted(wanted.key, stretch, wanted.buffer[part])


def read_parts(
    files: Files, source: Source, checksum: Checksum, wanted: Wanted[P], most_bytes: int
) -> list[ReadPart[P]]:
    """The parts of a chunk, each at most so large."""
    read = _Read(files, source, checksum, wanted, most_bytes)
    return [ReadPart(read, number) for number in range(len(read.pieces))]
