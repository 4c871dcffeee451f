"""The sizes of a store, and how its cap is divided between segments and everything else."""

from __future__ import annotations

from typing import NamedTuple

from ..io.blocks import BLOCK_BYTES, aligned

SEGMENT_BYTES_MAX = 256 * 1024 * 1024  # where larger ones gain nothing and a reclaim gets coarse
SEGMENTS_MAX = 4096  # of a store so large that its files would be more than a directory is quick with
SEGMENT_CHUNKS_MIN = 16  # of chunks so large that the last one, for which no room is left, would be much
SEGMENTS_PER_STORE = 64  # of a store too small for segments of that size: the grain of its eviction
SEGMENT_SLACK_BYTES = 2 * BLOCK_BYTES  # blocks of a fragmented file's own extent list, which du counts
CHECKPOINT_BYTES_PER_CHUNK = 160  # of a chunk with an ordinary key: 114 were measured, at most half more
CHECKPOINT_BYTES_MIN = 128 * 1024  # of the tables beside it, some of whose pages are nearly empty
CHECKPOINTS = 2  # the one that counts, and the one that is being written
SMALL_FILES = 16  # kvtier.json, lock, in-use, a namespace's draft, five directories, ends of larger files
DIRECTORY_BYTES_PER_SEGMENT = 64  # a name of twelve bytes, in a directory that never shrinks
QUARANTINE_SHARE = 32  # a 32nd of the cap, so that evidence never costs much cache
QUARANTINE_BYTES_MAX = 64 * 1024 * 1024  # enough to see a pattern in what failed
SEGMENTS_MIN = 2  # one to append to, one to reclaim
AHEAD_BYTES_MAX = 512 * 1024 * 1024  # ready for stores: tenths of a second, in which others get ready
AHEAD_SHARE = 8  # of the cap at most: what is kept ready is not used
AHEAD_SEGMENTS_MAX = 16  # each is a file that is open
SEGMENTS_FOR_AHEAD = 4  # in a store of fewer, a segment kept ready would be too much of it
SEGMENTS_FOR_CARRYING = 16  # likewise one for carried chunks alone, and one ready for them
RECENT_SHARE = 5 / 8  # of a lap: docs/decisions.md has what less and more are worth
CROWD_SHARE = 4  # others that append to so much of the store leave no room to keep anything ready


class Facts(NamedTuple):
    """What is fixed for the life of a store."""

    store: bytes
    segment_bytes: int
    chunk_bytes: int  # of the chunks that it was made for


class Budget(NamedTuple):
    """The cap and its parts, in bytes. `reserve_bytes` stay free on the file system, whoever fills it."""

    capacity_bytes: int
    reserve_bytes: int
    segment_bytes: int
    chunk_bytes: int
    taken_bytes: int = (
        0  # what a segment was seen to take, where the file system gives it more than its length
    )
    unit_bytes: int = BLOCK_BYTES  # what the smallest file takes of the file system

    @property
    def segment_cost_bytes(self) -> int:
        """What one segment may take, counted as `du` does."""
        return max(self.segment_bytes + SEGMENT_SLACK_BYTES, self.taken_bytes)

    @property
    def quarantine_bytes(self) -> int:
        return min(QUARANTINE_BYTES_MAX, self.capacity_bytes // QUARANTINE_SHARE)

    @property
    def set_aside_bytes(self) -> int:
        """All but segments and the namespaces' files."""
        names = self.capacity_bytes // self.segment_bytes * DIRECTORY_BYTES_PER_SEGMENT
        checkpoints = CHECKPOINTS * self.checkpoint_bytes
        return checkpoints + self.quarantine_bytes + SMALL_FILES * self.unit_bytes + aligned(names)

    @property
    def checkpoint_bytes(self) -> int:
        """What one checkpoint of the index may take."""
        return CHECKPOINT_BYTES_MIN + aligned(
            self.capacity_bytes // self.chunk_bytes * CHECKPOINT_BYTES_PER_CHUNK
        )

    def segments_bytes(self, namespaces_count: int) -> int:
        """What all segments together may take."""
        return self.capacity_bytes - self.set_aside_bytes - namespaces_count * self.unit_bytes

    @property
    def least_bytes(self) -> int:
        """The smallest cap under which a store of these sizes works."""
        return self.set_aside_bytes + self.unit_bytes + SEGMENTS_MIN * self.segment_cost_bytes

    @property
    def least_room_bytes(self) -> int:
        """The least room on the file system in which such a store holds chunks, whatever its cap."""
        small_files = (SMALL_FILES + 1) * self.unit_bytes + CHECKPOINTS * CHECKPOINT_BYTES_MIN
        return small_files + SEGMENTS_MIN * self.segment_cost_bytes


def effective_cap_bytes(capacity_bytes: int, room_bytes: int) -> int:
    """What a store may take where so much of the file system is its own, or free and not reserved."""
    return min(capacity_bytes, max(0, room_bytes))


class Plan(NamedTuple):
    """What a process keeps ready in a store.

    Attributes:
        segments: how many the cap holds.
        ahead: how many are kept ready for stores.
        kept: how many of those that are ready only carried chunks may have.
    """

    segments: int
    ahead: int
    kept: int

    @staticmethod
    def of(budget: Budget, namespaces_count: int, open_elsewhere: int = 0) -> Plan:
        """The plan where others have so many segments open."""
        segments = max(0, budget.segments_bytes(namespaces_count)) // budget.segment_cost_bytes
        if segments < SEGMENTS_FOR_AHEAD or open_elsewhere * CROWD_SHARE > segments:
            return Plan(segments, 0, 0)
        ahead_bytes = min(AHEAD_BYTES_MAX, budget.capacity_bytes // AHEAD_SHARE)
        kept = 1 if segments >= SEGMENTS_FOR_CARRYING else 0
        ahead = min(AHEAD_SEGMENTS_MAX, ahead_bytes // budget.segment_bytes)
        return Plan(segments, max(1, ahead), kept)


def recent_since(opened: int, segments: int) -> int:
    """How many segments had been opened when what was used lately was: most of a lap of the log ago.

    Args:
        opened: segments that have been opened so far.
        segments: how many the cap holds.
    """
    return max(1, opened - int(segments * RECENT_SHARE))


ONE_AT_NEED = Plan(SEGMENTS_MIN, 0, 0)  # of who appends little, and soon ends


def segment_bytes_for(capacity_bytes: int, chunk_bytes: int) -> int:
    """The size of segments for a new store."""
    smallest = aligned(chunk_bytes) * 2 + 4 * BLOCK_BYTES  # two chunks, header, table, body, footer
    fitting = aligned(capacity_bytes // SEGMENTS_PER_STORE)
    few = aligned(capacity_bytes // SEGMENTS_MAX)
    largest = max(SEGMENT_BYTES_MAX, few, SEGMENT_CHUNKS_MIN * aligned(chunk_bytes))
    return max(smallest, min(fitting, largest))


def facts_for(capacity_bytes: int, chunk_bytes: int) -> Facts:
    """The sizes of a new store; its uuid is still to be given."""
    return Facts(b"", segment_bytes_for(capacity_bytes, chunk_bytes), chunk_bytes)


def cap_holding(segments_bytes: int, namespaces_count: int, facts: Facts) -> int:
    """The least cap under which a store works and its segments may take `segments_bytes`."""
    budget = Budget(0, 0, facts.segment_bytes, facts.chunk_bytes)
    segments_bytes = max(segments_bytes, SEGMENTS_MIN * budget.segment_cost_bytes)
    namespaces_count = max(1, namespaces_count)
    # Some shares grow with the cap itself, by a small part of what is added: a few steps reach it.
    while (short_bytes := segments_bytes - budget.segments_bytes(namespaces_count)) > 0:
        budget = budget._replace(capacity_bytes=budget.capacity_bytes + short_bytes)
    return budget.capacity_bytes
