"""Reclaims with a second chance: chunks that were used lately are written again.

One queue in the order of writing, and a chunk that some tier used within the last five eighths of a lap of
the log moves to its end. What may be carried is bounded by what was stored: with a write amplification of
1.3, three bytes are carried for ten that were stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ...base import ChunkKey, Failure
from ...errors import TierError
from ..format.checksum import ChunkChecksum
from ..index.environment import Index
from ..index.ledger import Ledger
from ..index.order import Since, next_order
from ..index.records import Extent
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES, aligned, scratch
from ..io.lanes import Lanes
from ..io.pieces import Wanted
from ..io.plan import plan_reads
from ..wear.budget import WriteBudget
from .ahead import Ahead
from .append import Appender
from .budget import recent_since
from .chunks import Live, Target
from .durability import Durability
from .readers import Readers
from .segments import Segments
from .victim import Victim, Victims

CARRY_STEP_BYTES = 4 * 1024 * 1024  # read, then written, at a time: the memory that a reclaim takes
CARRY_FILL_MAX = 0.9  # of a segment, carried in one go: the rest is tables, and ends that are too short
CARRY_TRIES_MAX = 4  # in a row: stores beside it may replace the open segment each time
# Saved up at most while nothing was reclaimed: four large segments, of a large store more.
ALLOWANCE_BYTES_MIN = 1024 * 1024 * 1024
ALLOWANCE_SHARE = 16  # of the cap


class Allowance:
    """How many bytes may be carried. One event loop."""

    def __init__(self, write_amplification: float, capacity_bytes: int) -> None:
        assert write_amplification >= 1, "each stored byte is written at least once"
        self._share = write_amplification - 1
        self._bytes_max = max(ALLOWANCE_BYTES_MIN, capacity_bytes // ALLOWANCE_SHARE)
        self._left_bytes = 0.0

    def stored(self, size_bytes: int) -> None:
        self._left_bytes = min(self._bytes_max, self._left_bytes + self._share * size_bytes)

    def take(self, size_bytes: int) -> bool:
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        return True


class Carrier:
    """Empties the oldest segments, carrying what is worth it. One event loop.

    Where the store is large enough, what is carried has segments of its own: stores at full speed would fill
    any other before it, and what is hot lies together.
    """

    def __init__(
        self,
        lanes: Lanes,
        segments: Segments,
        index: Index,
        victims: Victims,
        ahead: Ahead,
        durability: Durability,
        allowance: Allowance,
        budget: WriteBudget,
        *,
        beside: Appender,
        apart: Appender,
    ) -> None:
        self._lanes, self._segments, self._index, self._victims = lanes, segments, index, victims
        self._ahead, self._durability, self._allowance = ahead, durability, allowance
        self._budget = budget
        self._beside, self._apart = beside, apart
        # Mutable state, changed on the loop only.
        self.carried_chunks = 0
        self.carried_bytes = 0
        self.evicted_chunks = 0

    @property
    def _appender(self) -> Appender:
        return self._apart if self._ahead.kept else self._beside

    async def reclaim(self, count: int = 1, *, carry: bool) -> bool:
        """Free up to so many segments; False where there is none to reclaim. Must not be cancelled.

        Raises:
            OSError, TierError: they are left to whoever reclaims next.
        """
        victims = await self._lanes.upkeep(partial(self._begin, count))
        moves: list[_Move] = []
        try:
            await self._save(victims, moves, carry=carry)
            self.carried_chunks += len(moves)
            self.carried_bytes += sum(move.old.length_bytes for move in moves)
            found_any = bool(victims)
            while victims:
                victim = victims.pop(0)
                self.evicted_chunks += await self._lanes.upkeep(partial(self._victims.finish, victim))
        except BaseException:
            for victim in victims:
                self._victims.abandon(victim)
            raise
        return found_any

    def _begin(self, count: int) -> list[Victim]:
        """Take some victims together, as far as what is worth carrying has a place in one segment."""
        victims: list[Victim] = []
        left_bytes = self._segments.facts.segment_bytes * CARRY_FILL_MAX
        since = self._recent_since()
        try:
            while len(victims) < count and (victim := self._victims.begin()) is not None:
                left_bytes -= sum(map(_size_bytes, _used(victim.live, since)))
                if victims and left_bytes < 0:
                    self._victims.abandon(victim)  # the next reclaim begins with it
                    break
                victims.append(victim)
        except (OSError, TierError):
            if not victims:
                raise
        return victims

    async def _save(self, victims: Sequence[Victim], moves: list[_Move], *, carry: bool) -> None:
        """Write again, durably, what is to outlive the victims."""
        before = self._durability.undurable_count
        if victims:
            # What is carried gets a lap of its own, so it does not join what was carried half a lap ago.
            with self._index.read() as txn:
                self._apart.retire_older((victims[0].segment.opened + txn.number("opened")) // 2)
        live = [one for victim in victims for one in victim.live] if carry else []
        chosen = list(self._chosen(live))
        with self._budget.spending(sum(map(_size_bytes, chosen))):
            for group in _groups(chosen):
                await self._carry(group, moves)
        removals = [one for victim in victims for one in victim.removals]
        # Those that have no place now are the first in the next segment that is made ready.
        self._ahead.unwritten += await self._appender.write_removals(removals, wait=False)
        if moves or removals:
            # What was durable stays so: the new place first, then the old one may be overwritten.
            await self._durability.sync()
        if self._durability.undurable_count > before:
            await self._lanes.index(partial(self._index.write, partial(_put_back, moves)))
            names = ", ".join(str(victim.number) for victim in victims)
            raise TierError("nvme", f"segment {names} keeps its chunks: no other place is durable")

    def _recent_since(self) -> int:
        with self._index.read() as txn:
            return recent_since(txn.number("opened"), txn.totals().segments)

    def _chosen(self, lives: Iterable[Live]) -> Iterator[Live]:
        """The chunks to carry, as far as allowance and budget go; what was used last comes first."""
        spare_bytes = self._budget.spare_bytes()
        for live in sorted(_used(lives, self._recent_since()), key=_latest_first):
            if spare_bytes > 0 and self._allowance.take(_size_bytes(live)):
                spare_bytes -= _size_bytes(live)
                yield live

    async def _carry(self, group: list[Live], moves: list[_Move]) -> None:
        namespace, scope = group[0].namespace, group[0].scope
        checksum = ChunkChecksum(namespace)
        wanted = list(_with_buffers(group))
        readers = Readers(self._segments, self._index, namespace)
        try:
            pieces = plan_reads(self._segments.files, readers, checksum, wanted)
            await self._lanes.store(pieces, then=lambda: None)  # behind loads, like all that nobody waits for
        finally:
            readers.close()
        bad = {piece.chunks[position].key for piece in pieces for position in piece.failed}
        good = [chunk for chunk in wanted if chunk.key not in bad]
        target = Target(namespace, scope, checksum)
        tries = 0
        while good and tries < CARRY_TRIES_MAX:
            since, there = await self._lanes.index(
                partial(self._index.write, partial(_still_there, scope, good))
            )
            chunks = [(chunk.key, chunk.buffer) for chunk in there]
            moved: dict[ChunkKey, _Move] = {}
            accept = partial(_moved, scope, {chunk.key: chunk.place for chunk in there}, moved)
            failed = await self._appender.append(target, chunks, accept, since=since)
            moves += [move for key, move in moved.items() if key not in failed]
            good = [chunk for chunk in there if failed.get(chunk.key) is Failure.DROPPED]
            tries = 0 if len(good) < len(there) else tries + 1


class _Move(NamedTuple):
    """A chunk that was carried: from where to where."""

    scope: int
    key: ChunkKey
    old: Extent
    new: Extent


def _still_there(
    scope: int, chunks: Sequence[Wanted[Extent]], txn: Transaction
) -> tuple[Since, list[Wanted[Extent]]]:
    """Which chunks still lie where they were found, and as of when: a removal after that is a later one."""
    there = []
    for chunk in chunks:
        now = txn.extent(scope, chunk.key)
        if now is not None and now[:3] == chunk.place[:3]:
            there.append(chunk)
    return Since(next_order(txn), txn.number("opened")), there


def _moved(
    scope: int,
    old: Mapping[ChunkKey, Extent],
    moved: dict[ChunkKey, _Move],
    key: ChunkKey,
    place: Extent,
    now: Extent | None,
) -> Extent | None:
    """The chunk's new place, unless it was removed or written elsewhere meanwhile."""
    if now is None or now[:3] != old[key][:3]:
        moved.pop(key, None)
        return None
    # Its age and its uses go with it; the next lap is earned by being used again.
    new = place._replace(stored_s=now.stored_s, hits=now.hits, used_at=now.used_at)
    moved[key] = _Move(scope, key, now, new)  # again, where the transaction runs again
    return new


def _put_back(moves: Sequence[_Move], txn: Transaction) -> None:
    """Say that the chunks lie in their old place, which is as good as ever; but of what was removed since."""
    ledger = Ledger(txn)
    for scope, key, old, new in moves:
        now = ledger.extent(scope, key)
        if now is not None and now[:3] == new[:3]:
            ledger.put(scope, key, now, old)
    ledger.close()


def _used(lives: Iterable[Live], since: int) -> Iterator[Live]:
    return (live for live in lives if live.found and live.extent.used_at >= since)


def _size_bytes(live: Live) -> int:
    return aligned(live.extent.length_bytes)


def _latest_first(live: Live) -> tuple[int, int]:
    return -live.extent.used_at, live.extent.block


def _groups(lives: Iterable[Live]) -> Iterator[list[Live]]:
    """Steps of bounded size, each of one namespace and in the order of place."""
    by_target: dict[tuple[bytes, int], list[Live]] = {}
    for live in lives:
        by_target.setdefault((live.namespace, live.scope), []).append(live)
    for group in by_target.values():
        group.sort(key=lambda live: live.extent.block)
        step: list[Live] = []
        step_bytes = 0
        for live in group:
            size_bytes = _size_bytes(live)
            if step and step_bytes + size_bytes > CARRY_STEP_BYTES:
                yield step
                step, step_bytes = [], 0
            step.append(live)
            step_bytes += size_bytes
        yield step


def _with_buffers(group: list[Live]) -> Iterator[Wanted[Extent]]:
    memory = scratch(sum(max(BLOCK_BYTES, aligned(live.extent.length_bytes)) for live in group))
    start = 0
    for live in group:
        buffer = memory[start : start + live.extent.length_bytes]
        yield Wanted(live.key, live.extent, buffer)
        start += max(BLOCK_BYTES, aligned(live.extent.length_bytes))
