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
IOV_MAX = 1024  # the kernel's bound on the parts of one vectored call


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up to whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def blocks_of(size_bytes: int) -> int:
    """How many blocks `size_bytes` take."""
    return -(-size_bytes // BLOCK_BYTES)


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
            if written <= 0:
                raise OSError(errno.EIO, "a write made no progress")
            written -= written % BLOCK_BYTES
            parts.extendleft(reversed(_rest(batch, written)))
        offset += written


def read_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Fill buffers from a block's offset, into memory of any alignment; returns bytes read before the end.

    Raises:
        OSError: the device or file system refused.
    """
    assert len(buffers) <= IOV_MAX, "the plan splits reads"
    wanted = sum(map(len, buffers))
    try:
        done = files.preadv(fd, buffers, offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _read_through_copy(files, fd, buffers, offset)
    while 0 < done < wanted and done % BLOCK_BYTES == 0:
        more = files.preadv(fd, _rest(buffers, done), offset + done)
        if more <= 0:
            break
        done += more
    return done


def _read_through_copy(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    copy = scratch(sum(map(len, buffers)))
    done = min(files.preadv(fd, [copy], offset), sum(map(len, buffers)))
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


def _rest(buffers: Sequence[Buffer], skip_bytes: int) -> list[Buffer]:
    rest = []
    for buffer in buffers:
        if skip_bytes < len(buffer):
            rest.append(buffer[skip_bytes:])
        skip_bytes = max(0, skip_bytes - len(buffer))
    return rest
