"""Pieces: what one vectored call writes or reads.

A piece runs on a lane thread and keeps its result for the event loop to collect. It computes the checksum
right beside the transfer, while the bytes are in the CPU's cache. Which chunks are a piece says `plan.py`;
of a chunk that is too large for one, `parts.py` makes several.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from ...base import Buffer, ChunkKey, Failure
from ...errors import TierError
from .blocks import BLOCK_BYTES, blocks_of, read_all, scratch, write_all
from .clock import now_s
from .files import Files
from .refusal import BAD_PLACE, failure_of


class Checksum(Protocol):
    """Computes the checksum that a chunk carries; called on lane threads."""

    def of(self, key: ChunkKey, payload: Buffer | bytes) -> int: ...
    def of_part(self, payload: Buffer | bytes) -> int: ...
    def of_parts(self, key: ChunkKey, parts: Sequence[tuple[int, int]]) -> int: ...


class Place(Protocol):
    """Where a chunk lies, and what its bytes must be."""

    @property
    def segment(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def length_bytes(self) -> int: ...
    @property
    def checksum(self) -> int: ...


P = TypeVar("P", bound=Place)


class Written(NamedTuple):
    """One chunk that a piece has written."""

    key: ChunkKey
    block: int
    length_bytes: int
    checksum: int
    stored_s: int


class WritePiece:
    """Some neighbouring chunks of one batch: checksums and one vectored write."""

    def __init__(
        self,
        files: Files,
        fd: int,
        checksum: Checksum,
        block: int,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
    ) -> None:
        self._files, self._fd, self._checksum = files, fd, checksum
        self._block, self.chunks = block, chunks
        # The result: the chunks when it went well, else the error; neither when it never ran.
        self.written: list[Written] = []
        self.error: OSError | None = None

    def __call__(self) -> int:
        """Write; returns the bytes that were written."""
        stored_s, block, written = now_s(), self._block, []
        parts: list[Buffer] = []
        try:
            tails = Tails(sum(1 for _, buffer in self.chunks if len(buffer) % BLOCK_BYTES))
            for key, buffer in self.chunks:
                written.append(Written(key, block, len(buffer), self._checksum.of(key, buffer), stored_s))
                parts += tails.written(buffer)
                block += blocks_of(len(buffer))
            write_all(self._files, self._fd, parts, self._block * BLOCK_BYTES)
        except (OSError, MemoryError) as error:
            self.error = as_os_error(error)
            return 0
        self.written = written
        return sum(map(len, parts))


def as_os_error(error: OSError | MemoryError) -> OSError:
    """The same as the system says it: that there is no memory."""
    if isinstance(error, OSError):
        return error
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class Wanted(NamedTuple, Generic[P]):
    """One chunk to read: where it lies and where its bytes go."""

    key: ChunkKey
    place: P
    buffer: Buffer


class Source(Protocol):
    """Opens files for read pieces, and says afterwards what still counts; called on lane threads."""

    def acquire(self, segment: int, generation: int) -> int | None:
        """Open this life of the segment and hold it against overwriting; None where that life has ended.

        Raises:
            OSError: the file is gone or cannot be opened although the segment is in force.
            TierError: nobody can say whether it is.
        """
        ...

    def release(self, segment: int) -> None: ...

    def in_force(self, key: ChunkKey, place: Place) -> bool:
        """Whether the chunk still lies there; False where nobody can say."""
        ...


class ReadPiece(Generic[P]):
    """Some neighbouring chunks of one segment: one vectored read, and their checksums."""

    def __init__(self, files: Files, source: Source, checksum: Checksum, chunks: Sequence[Wanted[P]]) -> None:
        self._files, self._source, self._checksum = files, source, checksum
        self.chunks = chunks
        # The result: what went wrong, by position in `chunks`; only meaningful once it ran.
        self.failed: dict[int, Failure] = {}
        self.errors: list[OSError | TierError] = []
        self.unreadable: set[int] = set()  # positions in `failed` whose read itself the drive refused

    def __call__(self) -> int:
        """Read and check; returns the bytes that were read."""
        first = self.chunks[0].place
        try:
            fd = self._source.acquire(first.segment, first.generation)
        except FileNotFoundError:
            self._fail_all(Failure.GONE)  # the log has lost what the index still has
            return 0
        except (OSError, TierError, MemoryError) as error:
            self.errors.append(as_os_error(error) if isinstance(error, MemoryError) else error)
            self._fail_all(failure_of(error))
            return 0
        if fd is None:
            self._fail_all(Failure.MISSING)
            return 0
        try:
            return self._read(fd, range(len(self.chunks)))
        finally:
            self._source.release(first.segment)

    def _fail_all(self, failure: Failure) -> None:
        self.failed = dict.fromkeys(range(len(self.chunks)), failure)

    def _read(self, fd: int, positions: range) -> int:
        chunks = self.chunks[positions.start : positions.stop]
        try:
            plan = _ReadPlan(chunks)
            done = read_all(self._files, fd, plan.parts, chunks[0].place.block * BLOCK_BYTES)
        except (OSError, MemoryError) as error:
            if len(positions) > 1:  # one bad place must not cost its neighbours
                return sum(self._read(fd, range(position, position + 1)) for position in positions)
            self.errors.append(as_os_error(error))
            self.failed[positions.start] = failure_of(error)
            if isinstance(error, OSError) and error.errno in BAD_PLACE:
                self.unreadable.add(positions.start)
            return 0
        plan.finish()
        for position, wanted, end in zip(positions, chunks, plan.ends, strict=True):
            self._check(position, wanted, complete=end <= done)
        return done

    def _check(self, position: int, wanted: Wanted[P], *, complete: bool) -> None:
        # The bytes are read first and the source is asked afterwards: had the segment been reclaimed and
        # overwritten in between, the source would say so now.
        right = complete and self._checksum.of(wanted.key, wanted.buffer) == wanted.place.checksum
        if not right:
            self.failed[position] = wrong(self._source, wanted)


def wrong(source: Source, wanted: Wanted[P]) -> Failure:
    """What it means that a chunk's bytes were not found in its place."""
    return Failure.CORRUPT if source.in_force(wanted.key, wanted.place) else Failure.MISSING


class _ReadPlan:
    """The parts of one read, in file order, with what is read only to be dropped or moved."""

    def __init__(self, chunks: Sequence[Wanted[P]]) -> None:
        self.parts: list[Buffer] = []
        self.ends: list[int] = []  # of each chunk, counted from the first byte read
        tails = Tails(sum(1 for wanted in chunks if len(wanted.buffer) % BLOCK_BYTES))
        self._moves: list[tuple[Buffer, Buffer]] = []
        first = position = chunks[0].place.block
        for wanted in chunks:
            if wanted.place.block > position:
                self.parts.append(scratch((wanted.place.block - position) * BLOCK_BYTES))
            position = wanted.place.block + blocks_of(len(wanted.buffer))
            self.parts += tails.read(wanted.buffer, self._moves)
            self.ends.append((wanted.place.block - first) * BLOCK_BYTES + len(wanted.buffer))

    def finish(self) -> None:
        for target, source in self._moves:
            target[:] = source


class Tails:
    """Whole blocks for the ends of chunks that do not fill their last one.

    Only the end is copied; what lies behind the buffer in memory is neither written out nor overwritten.
    """

    def __init__(self, count: int) -> None:
        self._memory = scratch(count * BLOCK_BYTES) if count else memoryview(b"")

    def written(self, buffer: Buffer) -> list[Buffer]:
        whole = len(buffer) - len(buffer) % BLOCK_BYTES
        if whole == len(buffer):
            return [buffer]
        tail, self._memory = self._memory[:BLOCK_BYTES], self._memory[BLOCK_BYTES:]
        tail[: len(buffer) - whole] = buffer[whole:]
        return [buffer[:whole], tail] if whole else [tail]

    def read(self, buffer: Buffer, moves: list[tuple[Buffer, Buffer]]) -> list[Buffer]:
        whole = len(buffer) - len(buffer) % BLOCK_BYTES
        if whole == len(buffer):
            return [buffer]
        tail, self._memory = self._memory[:BLOCK_BYTES], self._memory[BLOCK_BYTES:]
        moves.append((buffer[whole:], tail[: len(buffer) - whole]))
        return [buffer[:whole], tail] if whole else [tail]
