"""Segment files that are open for reading, and held against overwriting while they are read."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ...base import ChunkKey
from ...errors import TierError
from ..index.environment import Index
from ..index.records import SegmentState
from ..io.pieces import Place
from .segments import READERS_BYTE, Segments

FILES_OPEN_MAX = 128  # idle ones are closed beyond this; each is one of the process's file descriptors


class _Held:
    __slots__ = ("fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0


class Readers:
    """A `pieces.Source` over the store's segments, for one namespace. Any thread.

    Attributes:
        namespace: whose chunks are read; while it changes, one of the old one's that fails is a miss.
    """

    def __init__(self, segments: Segments, index: Index, namespace: bytes) -> None:
        self._segments, self._files, self._index = segments, segments.files, index
        self.namespace = namespace
        self._lock = threading.Lock()
        # Mutable state, under the lock; the least recently used first.
        self._held: OrderedDict[int, _Held] = OrderedDict()

    def acquire(self, segment: int, generation: int) -> int | None:
        """Open this life of the segment and hold it against overwriting; None where that life has ended.

        Raises:
            OSError: the file is gone or cannot be opened although the index has it.
            TierError: the index cannot say.
        """
        fd = self._hold(segment)
        current = False
        try:
            # The lock first, then the question: had it been overwritten before, the index would say so now.
            current = self._is_current(segment, generation)
        finally:
            if fd is not None and not current:
                self.release(segment)
        if current and fd is None:
            raise FileNotFoundError(f"segment {segment} has no file")
        return fd if current else None

    def release(self, segment: int) -> None:
        with self._lock:
            held = self._held[segment]
            held.users -= 1
            if not held.users:
                self._files.unlock(held.fd, READERS_BYTE)
                self._trim()

    def in_force(self, key: ChunkKey, place: Place) -> bool:
        """Whether the index still says that the chunk lies there; False where it cannot say."""
        try:
            _, (extent,) = self._index.find(self.namespace, [key])
        except TierError:
            return False
        return extent is not None and _room_of(extent) == _room_of(place)

    def close(self) -> None:
        with self._lock:
            for held in self._held.values():
                self._files.close(held.fd)
            self._held.clear()

    def _hold(self, segment: int) -> int | None:
        with self._lock:
            held = self._held.get(segment)
            if held is None:
                try:
                    held = _Held(self._segments.open(segment))
                except FileNotFoundError:
                    return None
                self._held[segment] = held
            self._held.move_to_end(segment)
            if not held.users and not self._files.try_lock(held.fd, READERS_BYTE, exclusive=False):
                return None  # it is being overwritten at this moment
            held.users += 1
            return held.fd

    def _is_current(self, segment: int, generation: int) -> bool:
        with self._index.read() as txn:
            found = txn.segment(segment)
        return found is not None and found.generation == generation and found.state is not SegmentState.FREE

    def _trim(self) -> None:
        idle = [number for number, held in self._held.items() if not held.users]
        for number in idle[: max(0, len(self._held) - FILES_OPEN_MAX)]:
            self._files.close(self._held.pop(number).fd)


def _room_of(place: Place) -> tuple[int, int, int, int]:
    return place.segment, place.generation, place.block, place.length_bytes
