"""The index's records: what each says, the bytes of each, and the sizes that bound them."""

from __future__ import annotations

import enum
import os
import struct
from typing import NamedTuple

from .errors import IndexDamaged

READERS_MAX = 512  # reader slots over all processes: threads that look up at the same moment
READER_BYTES = 64  # of one slot in the lock file
LOCK_FILE_BYTES = 9 * 4096  # of all slots and what stands before them; LMDB uses what is over for more slots
KEY_BYTES_MAX = 256  # of a chunk's key
MAP_PAGES_MIN = 256  # room for a few thousand chunks, and for a change of them all
PAGE_BYTES_MAX = 32 * 1024  # of LMDB; it takes the system's page, up to this
SMALL_FILES = 2  # beside an index in shared memory: the writer lock, and whose it is
MAP_FACTOR = 4  # pages may be half full, and as many may be in change
SHARED_BYTES_PER_CHUNK = (
    256  # what a chunk with an ordinary key takes: 131 were measured, without old readers
)

SCOPE = struct.Struct(">I")  # also a segment's number: big-endian, so that keys sort by it
EXTENT = struct.Struct("<IIIIIIBI")
SEGMENT = struct.Struct("<BIQIIQQ")
NAMESPACE = struct.Struct("<IIQQQQQ")
NUMBER = struct.Struct("<Q")
REMOVAL = struct.Struct("<QI")
AGE = struct.Struct(">QI")  # big-endian, so that keys sort by it
STANDING = struct.Struct(">BQI")  # state, age, number: likewise
TOTALS = struct.Struct("<QQ")
UNREAD = struct.Struct("<I")


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
    hits: int  # loads so far, and parts of laps of the log in which another tier served it; saturating
    used_at: int  # how many segments had been opened when it was last used, here or elsewhere; or NEVER


HITS_MAX = 255
NEVER = 0  # when a chunk was last used that never was: before the first segment was opened


class Segment(NamedTuple):
    state: SegmentState
    generation: int
    opened: int  # order of opening in the store
    end_block: int  # behind the last committed batch
    live_chunks: int
    live_bytes: int  # of chunks that the index refers to
    allocated_bytes: int


class Totals(NamedTuple):
    """What all segments of one state are together."""

    segments: int
    allocated_bytes: int


class Namespace(NamedTuple):
    scope: int
    epoch: int
    chunks: int
    chunk_bytes: int  # sum of their lengths
    hits: int
    hit_bytes: int
    useful_bytes: int = 0  # of chunks that are there and were ever read back, or used in another tier


class Removal(NamedTuple):
    """When a key was removed on request: what the log says of it from before is out of date."""

    order: int
    opened: int  # segments that had been opened by then; in none that is opened later lies the chunk


class Unread(NamedTuple):
    """A segment whose tables are still to be read into the index."""

    opened: int
    number: int
    generation: int


def system_page_bytes() -> int:
    """The unit of shared memory, and of maps."""
    return os.sysconf("SC_PAGESIZE")


def page_bytes(system_page: int) -> int:
    """The size of the pages of a new index."""
    return min(PAGE_BYTES_MAX, system_page)


def map_bytes_for(capacity_bytes: int, chunk_bytes: int, system_page: int) -> int:
    """How far an index may grow: the cap full of chunks with the longest keys. It takes only what it uses."""
    record_bytes = 8 + SCOPE.size + KEY_BYTES_MAX + EXTENT.size + 2  # with LMDB's own head and pointer
    chunks_bytes = capacity_bytes // chunk_bytes * record_bytes * MAP_FACTOR
    return _whole_pages(max(MAP_PAGES_MIN * page_bytes(system_page), chunks_bytes), system_page)


def shared_bytes_for(capacity_bytes: int, chunk_bytes: int, system_page: int) -> int:
    """How much shared memory an index takes when the cap is full of chunks with ordinary keys."""
    chunks_bytes = capacity_bytes // chunk_bytes * SHARED_BYTES_PER_CHUNK
    data_bytes = max(MAP_PAGES_MIN * page_bytes(system_page), chunks_bytes)
    lock_bytes = _whole_pages(LOCK_FILE_BYTES, system_page)
    return _whole_pages(data_bytes, system_page) + lock_bytes + SMALL_FILES * system_page


def _whole_pages(size_bytes: int, page: int) -> int:
    return -(-size_bytes // page) * page


def decode_segment(raw: bytes) -> Segment:
    """The record in `raw`.

    Raises:
        IndexDamaged: it is in no state that there is.
    """
    state, *rest = SEGMENT.unpack(raw)
    try:
        return Segment(SegmentState(state), *rest)
    except ValueError as error:
        raise IndexDamaged("nvme", f"the index cannot be used: {error}") from error
