"""Contract checks for tiers; other packages test their own tiers with them.

Subclass `TierContract`, give it a `tier` fixture and, where the tier differs, `CHUNK_BYTES`,
`KEEPS` or `keys()`; pytest does the rest:

    class TestMyTier(TierContract):
        @pytest.fixture
        async def tier(self, tmp_path):
            tier = await MyTier.open(tmp_path)
            yield tier
            await tier.close()
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from typing import Any, ClassVar

from .base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats


def aligned_buffers(count: int, size_bytes: int) -> list[Buffer]:
    """`count` page-aligned, zeroed buffers of `size_bytes`, as the slots of an arena are."""
    stride = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    arena = memoryview(mmap.mmap(-1, max(1, count) * stride))
    return [arena[i * stride : i * stride + size_bytes] for i in range(count)]


def pattern(key: ChunkKey, size_bytes: int) -> bytes:
    """Bytes that depend on the key and on the position, so that a swap or a shift shows."""
    seed = int.from_bytes(key[-8:], "big")
    words = ((seed * 2654435761 + i * 40503) & 0xFFFFFFFF for i in range(-(-size_bytes // 4)))
    return b"".join(word.to_bytes(4, "little") for word in words)[:size_bytes]


class TierContract:
    """What every tier promises, as tests. `KEEPS = False` is for a tier that drops all it is given."""

    CHUNK_BYTES: ClassVar[int] = 8192
    KEEPS: ClassVar[bool] = True

    def keys(self, count: int) -> list[ChunkKey]:
        """Keys that the tier under test accepts."""
        return [b"chunk-%08d" % i for i in range(count)]

    def filled(self, keys: Sequence[ChunkKey]) -> list[Buffer]:
        buffers = aligned_buffers(len(keys), self.CHUNK_BYTES)
        for key, buffer in zip(keys, buffers, strict=True):
            buffer[:] = pattern(key, self.CHUNK_BYTES)
        return buffers

    def empty(self, count: int) -> list[Buffer]:
        return aligned_buffers(count, self.CHUNK_BYTES)

    async def stored(self, tier: Tier, count: int) -> list[ChunkKey]:
        keys = self.keys(count)
        outcome = await tier.store(keys, self.filled(keys))
        assert outcome.succeeded == (tuple(keys) if self.KEEPS else ())
        return keys

    async def assert_holds(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        buffers = self.empty(len(keys))
        outcome = await tier.load(keys, buffers)
        if not self.KEEPS:
            assert set(outcome.failed.values()) <= {Failure.MISSING}
            return
        assert outcome.succeeded == tuple(keys)
        for key, buffer in zip(keys, buffers, strict=True):
            assert bytes(buffer) == pattern(key, self.CHUNK_BYTES)

    async def test_it_is_a_tier(self, tier: Any) -> None:
        assert isinstance(tier, Tier)
        assert tier.name

    async def test_a_stored_chunk_is_found_and_reads_back(self, tier: Any) -> None:
        keys = await self.stored(tier, 5)
        assert list(tier.lookup(keys)) == [self.KEEPS] * 5
        await self.assert_holds(tier, keys)

    async def test_an_unknown_key_is_a_miss_among_hits(self, tier: Any) -> None:
        keys = await self.stored(tier, 2)
        unknown = b"never stored"
        assert list(tier.lookup([unknown])) == [False]
        outcome = await tier.load([keys[0], unknown, keys[1]], self.empty(3))
        assert outcome.failed[unknown] is Failure.MISSING
        assert outcome.succeeded == (tuple(keys) if self.KEEPS else ())

    async def test_storing_twice_succeeds_and_keeps_the_bytes(self, tier: Any) -> None:
        keys = await self.stored(tier, 3)
        await self.stored(tier, 3)
        await self.assert_holds(tier, keys)

    async def test_a_removed_chunk_is_a_miss_and_can_come_back(self, tier: Any) -> None:
        keys = await self.stored(tier, 3)
        await tier.remove([keys[1], b"never stored"], RemoveReason.REQUESTED)
        assert list(tier.lookup(keys)) == [self.KEEPS, False, self.KEEPS]
        outcome = await tier.load([keys[1]], self.empty(1))
        assert outcome.failed == {keys[1]: Failure.MISSING}
        await self.stored(tier, 3)
        await self.assert_holds(tier, keys)

    async def test_an_empty_batch_is_nothing(self, tier: Any) -> None:
        assert list(tier.lookup([])) == []
        assert not (await tier.store([], [])).failed
        assert not (await tier.load([], [])).failed
        await tier.remove([], RemoveReason.REQUESTED)

    async def test_concurrent_stores_and_loads_do_not_mix(self, tier: Any) -> None:
        keys = self.keys(12)
        batches = [keys[i : i + 3] for i in range(0, 12, 3)]
        await asyncio.gather(*(tier.store(batch, self.filled(batch)) for batch in batches))
        await asyncio.gather(*(self.assert_holds(tier, batch) for batch in batches))

    async def test_a_cancelled_call_leaves_the_tier_usable(self, tier: Any) -> None:
        keys = self.keys(6)
        for turns in range(4):
            task = asyncio.ensure_future(tier.store(keys[:3], self.filled(keys[:3])))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            load = asyncio.ensure_future(tier.load(keys[:3], self.empty(3)))
            for _ in range(turns):
                await asyncio.sleep(0)
            load.cancel()
            await asyncio.wait([load])
        await self.stored(tier, 6)
        await self.assert_holds(tier, keys)

    async def test_stats_count_what_it_holds(self, tier: Any) -> None:
        before = tier.stats().chunks
        await self.stored(tier, 4)
        assert tier.stats().chunks - before == (4 if self.KEEPS else 0)

    async def test_flush_returns(self, tier: Any) -> None:
        await self.stored(tier, 2)
        await tier.flush()

    async def test_a_closed_tier_fails_every_key_and_closes_twice(self, tier: Any) -> None:
        keys = await self.stored(tier, 2)
        await tier.close()
        await tier.close()
        assert set((await tier.load(keys, self.empty(2))).failed.values()) == {Failure.CLOSED}
        assert set((await tier.store(keys, self.filled(keys))).failed.values()) == {Failure.CLOSED}


class MemoryTier:
    """A tier that keeps bytes in a dict: the oracle in tests, with switches to make it slow or bad.

    Attributes:
        gate: while cleared, stores and loads wait.
        broken: keys whose loads fail with `Failure.CORRUPT`, after which they are gone.
        log: every call as (what, keys), in order.
    """

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.chunks: dict[ChunkKey, bytes] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: set[ChunkKey] = set()
        self.log: list[tuple[str, tuple[ChunkKey, ...]]] = []
        self._closed = False

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return [key in self.chunks for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        self.log.append(("store", tuple(keys)))
        if self._closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        await self.gate.wait()
        for key, buffer in zip(keys, buffers, strict=True):
            self.chunks.setdefault(key, bytes(buffer))
        return Outcome(tuple(keys))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        self.log.append(("load", tuple(keys)))
        if self._closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        await self.gate.wait()
        failed = {}
        for key, buffer in zip(keys, buffers, strict=True):
            if key in self.broken:
                self.chunks.pop(key, None)
                failed[key] = Failure.CORRUPT
            elif key not in self.chunks:
                failed[key] = Failure.MISSING
            else:
                buffer[:] = self.chunks[key][: len(buffer)]
        return Outcome.of(keys, failed)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        for key in keys:
            self.chunks.pop(key, None)

    async def flush(self) -> None:
        self.log.append(("flush", ()))

    async def invalidate(self) -> None:
        self.chunks.clear()

    def stats(self) -> TierStats:
        return TierStats(len(self.chunks), sum(map(len, self.chunks.values())), 0)

    async def close(self) -> None:
        self._closed = True


class Bare:
    """A tier with the protocol and nothing more: hides the optional abilities of another one."""

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self.lookup, self.store, self.load, self.remove = tier.lookup, tier.store, tier.load, tier.remove
        self.flush, self.stats, self.close = tier.flush, tier.stats, tier.close
