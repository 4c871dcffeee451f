"""The index's records: what each says, the bytes of each, and the sizes that bound them."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

PAGE_BYTES = 4096
READERS_MAX = 512  # reader slots over all processes: threads that look up at the same moment
READER_BYTES = 64  # of one slot in the lock file
MAP_BYTES_MIN = 1024 * 1024  # room for a few thousand chunks, and for a change of them all

SCOPE = struct.Struct(">I")  # also a segment's number: big-endian, so that keys sort by it
EXTENT = struct.Struct("<IIIIIIBB")
SEGMENT = struct.Struct("<BIQIIQQ")
NAMESPACE = struct.Struct("<IIQQQQQ")
NUMBER = struct.Struct("<Q")


class SegmentState(enum.IntEnum):
    """A segment's life. Whoever holds its claim may move it; a dead claimant's segment is anyone's."""

    FREE = 1  # nothing in it; may be taken and overwritten
    OPEN = 2  # its claimant appends
    SEALED = 3  # full, with its trailer
    RECLAIMING = 4  # its claimant is emptying it


LEGAL = {
    SegmentState.FREE: {SegmentState.OPEN},
    SegmentState.OPEN: {SegmentState.OPEN, SegmentState.SEALED, SegmentState.RECLAIMING},
    SegmentState.SEALED: {SegmentState.RECLAIMING},
    SegmentState.RECLAIMING: {SegmentState.FREE, SegmentState.RECLAIMING},
}


class Extent(NamedTuple):
    """Where a chunk lies and what is known about it."""

    segment: int
    generation: int
    block: int
    length_bytes: int
    checksum: int
    stored_s: int
    hits: int  # loads so far, saturating
    read_since: int  # whether it was read since it was last written: what a reclaim carries over


HITS_MAX = 255


class Segment(NamedTuple):
    state: SegmentState
    generation: int
    opened: int  # order of opening in the store
    end_block: int  # behind the last committed batch
    live_chunks: int
    live_bytes: int  # of chunks that the index refers to
    allocated_bytes: int


class Namespace(NamedTuple):
    scope: int
    epoch: int
    chunks: int
    chunk_bytes: int  # sum of their lengths
    hits: int
    hit_bytes: int
    useful_bytes: int = 0  # of chunks that are there and were ever read back


def decode_segment(raw: bytes) -> Segment:
    state, *rest = SEGMENT.unpack(raw)
    return Segment(SegmentState(state), *rest)
