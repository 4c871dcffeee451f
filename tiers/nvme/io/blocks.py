"""Blocks, the unit of direct I/O: sizes in blocks, memory in blocks, and whole reads and writes of them."""

from __future__ import annotations

import errno
import mmap
from collections import deque
from collections.abc import Sequence

from ...base import Buffer
from .files import Files

BLOCK_BYTES = 4096  # the unit of direct I/O: fits every drive's logical block and every page size below it
PIECE_BYTES = 1024 * 1024  # of one read or write: from here on larger ones gain nothing (docs/performance.md)
PART_BYTES_MAX = 4 * PIECE_BYTES  # of a large chunk in one call, where a request has calls for all lanes
CALLS_WANTED = 32  # of a request of large chunks: four a lane, so that none is done long before the others
IOV_MAX = 1024  # the kernel's bound on the parts of one vectored call


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def blocks_of(size_bytes: int) -> int:
    """How many blocks `size_bytes` take."""
    return -(-size_bytes // BLOCK_BYTES)


def part_bytes_max(request_bytes: int) -> int:
    """The most that is moved of a large chunk in one call, in a request of that size."""
    return min(PART_BYTES_MAX, max(PIECE_BYTES, request_bytes // CALLS_WANTED))


def parts_of(size_bytes: int, most_bytes: int) -> list[slice]:
    """The chunk's equal parts of whole blocks, each at most so large; the last one ends with the chunk."""
    count = max(1, -(-size_bytes // most_bytes))
    part_bytes = max(BLOCK_BYTES, aligned(-(-size_bytes // count)))
    return [slice(start, min(start + part_bytes, size_bytes)) for start in range(0, size_bytes, part_bytes)]


def scratch(size_bytes: int) -> Buffer:
    """Fresh zeroed memory for direct I/O, at least `size_bytes`, in whole blocks."""
    return memoryview(mmap.mmap(-1, max(BLOCK_BYTES, aligned(size_bytes))))


def write_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write whole blocks in full, at a block's offset, from memory of any alignment.

    Raises:
        OSError: the device or file system refused.
    """
    parts = deque(buffers)
    while parts:
        batch = [parts.popleft() for _ in range(min(IOV_MAX, len(parts)))]
        size_bytes = sum(map(len, batch))
        try:
            written = files.pwritev(fd, batch, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            batch = [_copy(batch)]  # memory that the drive cannot read from: through an aligned copy
            written = files.pwritev(fd, batch, offset)
        if written < size_bytes:
            written -= written % BLOCK_BYTES
            if written <= 0:
                raise OSError(errno.EIO, "a write made no progress")
            parts.extendleft(reversed(_rest(batch, written)))
        offset += written


def read_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Fill buffers from a block's offset, into memory of any alignment; returns bytes read before the end.

    Raises:
        OSError: the device or file system refused.
    """
    assert len(buffers) <= IOV_MAX, "the plan splits reads"
    try:
        return _read(files, fd, buffers, offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _read_through_copy(files, fd, buffers, offset)


def _read(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Read on after a short read, from the last whole block, until all is there or nothing more comes."""
    wanted, done, before = sum(map(len, buffers)), 0, -1
    while before < done < wanted:
        before, start = done, done - done % BLOCK_BYTES
        done = max(done, start + files.preadv(fd, _rest(buffers, start), offset + start))
    return done


def _read_through_copy(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    size_bytes = sum(map(len, buffers))
    copy = scratch(size_bytes)
    done = min(_read(files, fd, [copy], offset), size_bytes)
    start = 0
    for buffer in buffers:
        part = copy[start : min(start + len(buffer), done)]
        buffer[: len(part)] = part
        start += len(buffer)
    return done


def _copy(buffers: Sequence[Buffer]) -> Buffer:
    copy = scratch(sum(map(len, buffers)))
    start = 0
    for buffer in buffers:
        copy[start : start + len(buffer)] = buffer
        start += len(buffer)
    return copy


def _rest(buffers: Sequence[Buffer], skip_bytes: int) -> Sequence[Buffer]:
    if not skip_bytes:
        return buffers
    rest = []
    for buffer in buffers:
        if skip_bytes < len(buffer):
            rest.append(buffer[skip_bytes:])
        skip_bytes = max(0, skip_bytes - len(buffer))
    return rest
