"""Tiers without bytes: they decide like the real ones and move nothing."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence

from ...tiers.base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from ...tiers.nvme.format.codec import FIRST_BLOCK, SegmentName
from ...tiers.nvme.format.open_segment import OpenSegment
from ...tiers.nvme.format.segment_file import SegmentFile
from ...tiers.nvme.index.records import NEVER
from ...tiers.nvme.io.blocks import aligned
from ...tiers.nvme.io.files import Files
from ...tiers.nvme.log.budget import Budget, Plan, facts_for, recent_since
from ...tiers.nvme.log.reclaim import Allowance
from ...tiers.pinned.eviction import EvictionPolicy
from ...tiers.pinned.slots import Slot, SlotTable

_NOTHING = memoryview(b"")


class SlotsWithoutBytes:
    """A pinned tier that has its slot table and no arena."""

    name = "pinned"

    def __init__(
        self, slots_count: int, *, slot_bytes: int, make_policy: Callable[[int], EvictionPolicy]
    ) -> None:
        self.table = SlotTable(slots_count, make_policy(slots_count))
        self.slot_bytes = slot_bytes

    def buffer(self, slot: Slot) -> Buffer:
        return _NOTHING


class _Segment:
    """One life of a segment: its room, its age, and when each chunk was used last, in the order of place."""

    def __init__(self, file: SegmentFile, opened: int) -> None:
        self.room = OpenSegment(file, FIRST_BLOCK, opened=opened)
        self.used_at: dict[ChunkKey, int] = {}


class LogWithoutBytes:
    """The NVMe tier's log without its directory: the same segments, in the same order, with the same bounds.

    It shares the sizes (`Budget`), the room within a segment (`OpenSegment`) and the allowance for carrying
    with the real tier. It mirrors how `Log` claims and chooses a segment to reclaim, how `Carrier`
    chooses what is carried and where to, and how `RoomKeeper` keeps segments ready. Its upkeep always keeps
    pace with the stores, the cap is there to be used, and the index never fills; a real one may do worse.

    What one key stands for may be several chunks side by side, as the number of a public trace does. They go
    where the real chunks would, also over the end of a segment. The key is gone with the first of them.

    Threads: all calls on one event loop.

    Args:
        chunk_bytes: of a real chunk.
        chunks_per_key: how many of them each key stands for.
    """

    def __init__(
        self,
        name: str,
        *,
        capacity_bytes: int,
        chunk_bytes: int,
        write_amplification: float,
        chunks_per_key: int = 1,
    ) -> None:
        self.name = name
        self._budget = _budget(capacity_bytes, chunk_bytes)
        assert capacity_bytes >= self._budget.least_bytes, "the caller refuses what holds no two segments"
        # No file at all: what is asked of it is its size.
        self._file = SegmentFile(Files(), -1, SegmentName(b"", 0, 0), self._budget.segment_bytes)
        self._chunk_bytes, self._chunks_per_key = aligned(chunk_bytes), chunks_per_key
        self._key_bytes = self._chunk_bytes * chunks_per_key
        self._segments_bytes = self._budget.segments_bytes(namespaces_count=1)
        self._plan = Plan.of(self._budget, namespaces_count=1)
        self._allowance = Allowance(write_amplification, capacity_bytes)
        # Mutable state, changed on the loop only.
        self._where: dict[ChunkKey, _Segment] = {}
        # The open segments, by whether they are for carried chunks alone.
        self._open: dict[bool, _Segment] = {}
        self._sealed: list[_Segment] = []  # the oldest first
        self._opened_count = 0
        self._files_count = 0  # segments that have a file, in use or free
        self._free_count = 0
        self._counters = dict.fromkeys(("stored_bytes", "carried_bytes", "evicted_chunks"), 0)

    @staticmethod
    def least_bytes(chunk_bytes: int) -> int:
        """The smallest cap under which a log works."""
        capacity_bytes = 0
        # What is set aside grows with the cap, by a small part of it, so this ends soon.
        while (least_bytes := _budget(capacity_bytes, chunk_bytes).least_bytes) > capacity_bytes:
            capacity_bytes = least_bytes
        return capacity_bytes

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        return [key in self._where for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        new = {key: NEVER for key in keys if key not in self._where}
        self._append(new, carried=False)
        failed = {key: Failure.NO_SPACE for key in new if key not in self._where}
        size_bytes = (len(new) - len(failed)) * self._key_bytes
        self._counters["stored_bytes"] += size_bytes
        self._allowance.stored(size_bytes)
        return Outcome.of(keys, failed)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        failed = {}
        for key in keys:
            segment = self._where.get(key)
            if segment is None:
                failed[key] = Failure.MISSING
            else:
                segment.used_at[key] = self._opened_count
        return Outcome.of(keys, failed)

    def used(self, keys: Sequence[ChunkKey]) -> None:
        """Another tier has served these chunks."""
        for key in keys:
            segment = self._where.get(key)
            if segment is not None:
                segment.used_at[key] = self._opened_count

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        for key in keys:
            segment = self._where.pop(key, None)
            if segment is not None:
                del segment.used_at[key]

    async def flush(self) -> None:
        return None

    def stats(self) -> TierStats:
        used_bytes = self._files_count * self._budget.segment_cost_bytes
        return TierStats(len(self._where), used_bytes, self._budget.capacity_bytes, self._counters)

    async def close(self) -> None:
        return None

    def check(self) -> None:
        """Assert that every chunk lies in one segment, and that the segments keep to the cap."""
        held = [*self._sealed, *self._open.values()]
        assert sum(len(segment.used_at) for segment in held) == len(self._where), "a chunk leaked"
        assert all(key in segment.used_at for key, segment in self._where.items())
        assert len(held) <= self._files_count, "a segment is used that was never made"
        assert self._files_count * self._budget.segment_cost_bytes <= self._segments_bytes, "above the cap"

    # Writing.

    def _append(self, chunks: Mapping[ChunkKey, int], *, carried: bool) -> None:
        """Place the chunks in order, as far as there is room."""
        waiting, apart = list(chunks.items()), carried and self._plan.kept > 0
        placed_count, wanted_count = 0, len(waiting) * self._chunks_per_key
        while placed_count < wanted_count:
            more_count = self._place(waiting, placed_count, apart=apart)
            placed_count += more_count
            if not more_count:
                if not self._roll(apart=apart, carried=carried):
                    self._drop_part(waiting, placed_count)
                    return
                if not carried:
                    self._keep_ready()

    def _place(self, waiting: Sequence[tuple[ChunkKey, int]], placed_count: int, *, apart: bool) -> int:
        """Put as many chunks as fit into the open segment, behind those that were placed."""
        segment = self._open.get(apart)
        if segment is None:
            return 0
        lengths_bytes = [self._chunk_bytes] * (len(waiting) * self._chunks_per_key - placed_count)
        placement = segment.room.place([waiting[0][0]] * len(lengths_bytes), lengths_bytes)
        if placement is None:
            return 0
        begun = slice(self._begun(placed_count), self._begun(placed_count + placement.chunks))
        for key, used_at in waiting[begun]:
            segment.used_at[key] = used_at
            self._where[key] = segment
        return placement.chunks

    def _begun(self, chunks_count: int) -> int:
        """How many keys have their first chunk among so many."""
        return -(-chunks_count // self._chunks_per_key)

    def _drop_part(self, waiting: Sequence[tuple[ChunkKey, int]], placed_count: int) -> None:
        """Forget the key of which only a part was placed."""
        if placed_count % self._chunks_per_key:
            key, _ = waiting[placed_count // self._chunks_per_key]
            segment = self._where.pop(key, None)
            if segment is not None:
                del segment.used_at[key]

    def _roll(self, *, apart: bool, carried: bool) -> bool:
        """Replace the open segment: by a free one, a new one, or the oldest; False where there is none."""
        self._seal(apart=apart)
        if not self._free_count:
            self._create()
        if not self._free_count and (carried or not self._reclaim()):
            return False
        self._free_count -= 1
        self._opened_count += 1
        self._open[apart] = _Segment(self._file, self._opened_count)
        return True

    def _seal(self, *, apart: bool) -> None:
        full = self._open.pop(apart, None)
        if full is not None:
            insort(self._sealed, full, key=_age)

    def _create(self) -> None:
        if (self._files_count + 1) * self._budget.segment_cost_bytes <= self._segments_bytes:
            self._files_count += 1
            self._free_count += 1

    # Reclaiming.

    def _keep_ready(self) -> None:
        """Reclaim until as many segments are free, or may be made, as the plan says."""
        while self._lacks_some() and self._reclaim():
            pass

    def _lacks_some(self) -> bool:
        in_use_count = self._files_count - self._free_count
        return self._plan.segments - in_use_count < self._plan.ahead + self._plan.kept

    def _reclaim(self) -> bool:
        """Empty the oldest sealed segment; False where there is none."""
        if not self._sealed:
            return False
        victim = self._sealed.pop(0)
        if True in self._open and _age(self._open[True]) < (_age(victim) + self._opened_count) // 2:
            self._seal(apart=True)
        self._carry(victim)
        gone = [key for key in victim.used_at if self._where.get(key) is victim]
        for key in gone:
            del self._where[key]
        self._counters["evicted_chunks"] += len(gone)
        self._free_count += 1
        return True

    def _carry(self, victim: _Segment) -> None:
        """Write again what was used lately, the latest first, as far as the allowance goes."""
        since = recent_since(self._opened_count, self._files_count)
        used = [(key, used_at) for key, used_at in victim.used_at.items() if used_at >= since]
        used.sort(key=lambda item: -item[1])  # stable: equal ones stay in the order of place
        chosen = {key for key, _ in used if self._allowance.take(self._key_bytes)}
        carried = {key: used_at for key, used_at in victim.used_at.items() if key in chosen}
        self._append(carried, carried=True)
        moved_count = sum(1 for key in carried if self._where.get(key, victim) is not victim)
        self._counters["carried_bytes"] += moved_count * self._key_bytes


def _age(segment: _Segment) -> int:
    return segment.room.opened


def _budget(capacity_bytes: int, chunk_bytes: int) -> Budget:
    facts = facts_for(capacity_bytes, chunk_bytes)
    return Budget(capacity_bytes, 0, facts.segment_bytes, facts.chunk_bytes)
