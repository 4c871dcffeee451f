"""Contract checks for tiers; other packages test their own tiers with them.

Subclass `TierContract`, give it a `tier` fixture and, where the tier differs, `CHUNK_BYTES`,
`KEEPS`, `keys()` or `reopened()`; pytest does the rest:

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
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from .base import (
    KEY_BYTES_MAX,
    Buffer,
    ChunkKey,
    Failure,
    Invalidates,
    Outcome,
    RemoveReason,
    Tier,
    TierStats,
    ability,
)
from .breaker import Breaker
from .namespaced import DIGEST_BYTES, Namespaced

ANSWER_S = 10.0  # for a lookup's answer; a tier that has to ask another machine takes some milliseconds
ASK_AGAIN_S = 0.001
OTHER_BYTE = b"\xee"  # what a buffer holds once it is used for something else


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


def overwrite(buffers: Sequence[Buffer]) -> None:
    """Use the buffers for something else, as the owner of slots does once a call has returned."""
    for buffer in buffers:
        buffer[:] = OTHER_BYTE * len(buffer)


async def cancelled(call: Coroutine[Any, Any, Any], turns: int) -> None:
    """Cancel a call after some turns of the loop, and return when it has."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


class TierContract:
    """What every tier promises, as tests.

    Attributes:
        KEEPS: False for a tier that drops all it is given.
        ANY_KEY: False for a tier that takes certain keys only; then `keys` has them.
    """

    CHUNK_BYTES: ClassVar[int] = 8192
    KEEPS: ClassVar[bool] = True
    ANY_KEY: ClassVar[bool] = True

    def keys(self, count: int) -> list[ChunkKey]:
        """Keys that the tier under test accepts."""
        return [b"chunk-%08d" % i for i in range(count)]

    async def reopened(self, tier: Tier) -> Tier | None:
        """Close a tier that keeps chunks beyond its own life, and open what it has left; None for others."""
        return None

    def filled(self, keys: Sequence[ChunkKey]) -> list[Buffer]:
        buffers = aligned_buffers(len(keys), self.CHUNK_BYTES)
        for key, buffer in zip(keys, buffers, strict=True):
            buffer[:] = pattern(key, self.CHUNK_BYTES)
        return buffers

    def empty(self, count: int) -> list[Buffer]:
        return aligned_buffers(count, self.CHUNK_BYTES)

    async def known(self, tier: Tier, keys: Sequence[ChunkKey]) -> list[bool]:
        """What a lookup says in the end: a tier that has to ask elsewhere answers None until it knows."""
        async with asyncio.timeout(ANSWER_S):
            while None in (found := list(tier.lookup(keys))):  # noqa: ASYNC110 - the protocol has no event
                await asyncio.sleep(ASK_AGAIN_S)
        assert len(found) == len(keys), "one answer a key"
        return [bool(one) for one in found]

    async def stored(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        """Store the keys' own bytes from buffers that are used for something else right after."""
        buffers = self.filled(keys)
        outcome = await tier.store(keys, buffers)
        assert outcome.succeeded == (tuple(keys) if self.KEEPS else ())
        overwrite(buffers)

    async def assert_holds(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        buffers = self.empty(len(keys))
        outcome = await tier.load(keys, buffers)
        if not self.KEEPS:
            assert set(outcome.failed.values()) <= {Failure.MISSING}
            return
        assert outcome.succeeded == tuple(keys)
        self.assert_right(keys, buffers)

    async def assert_whole_or_missing(self, tier: Tier, keys: Sequence[ChunkKey]) -> None:
        buffers = self.empty(len(keys))
        outcome = await tier.load(keys, buffers)
        there = [at for at, key in enumerate(keys) if key in outcome.succeeded]
        self.assert_right([keys[at] for at in there], [buffers[at] for at in there])

    def assert_right(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> None:
        for key, buffer in zip(keys, buffers, strict=True):
            assert bytes(buffer[: self.CHUNK_BYTES]) == pattern(key, self.CHUNK_BYTES)

    async def test_it_is_a_tier(self, tier: Any) -> None:
        assert isinstance(tier, Tier)
        assert tier.name

    async def test_a_stored_chunk_is_found_and_reads_back(self, tier: Any) -> None:
        keys = self.keys(5)
        await self.stored(tier, keys)
        assert await self.known(tier, keys) == [self.KEEPS] * 5
        await self.assert_holds(tier, keys)

    async def test_an_unknown_key_is_a_miss_among_hits(self, tier: Any) -> None:
        keys = self.keys(2)
        await self.stored(tier, keys)
        unknown = b"never stored"
        assert await self.known(tier, [unknown]) == [False]
        outcome = await tier.load([keys[0], unknown, keys[1]], self.empty(3))
        assert outcome.failed[unknown] is Failure.MISSING
        assert outcome.succeeded == (tuple(keys) if self.KEEPS else ())

    async def test_storing_twice_succeeds_and_keeps_the_bytes(self, tier: Any) -> None:
        keys = self.keys(3)
        for _ in range(2):
            await self.stored(tier, keys)
        await self.assert_holds(tier, keys)

    async def test_the_shortest_and_the_longest_keys_differ_from_their_like(self, tier: Any) -> None:
        if not self.ANY_KEY:
            return
        long = bytes(range(256))[:KEY_BYTES_MAX]
        keys = [b"\0", b"\xff", b"/", long, long[:-1] + b"\0", b"\xff" + long[1:]]
        await self.stored(tier, keys)
        assert await self.known(tier, [*keys, b"\1", long[:-1]]) == [*[self.KEEPS] * len(keys), False, False]
        await self.assert_holds(tier, keys)

    async def test_a_removed_chunk_is_a_miss_and_can_come_back(self, tier: Any) -> None:
        keys = self.keys(3)
        await self.stored(tier, keys)
        await tier.remove([keys[1], b"never stored"], RemoveReason.REQUESTED)
        assert await self.known(tier, keys) == [self.KEEPS, False, self.KEEPS]
        outcome = await tier.load([keys[1]], self.empty(1))
        assert outcome.failed == {keys[1]: Failure.MISSING}
        await self.stored(tier, keys)
        await self.assert_holds(tier, keys)

    async def test_an_empty_batch_is_nothing(self, tier: Any) -> None:
        assert list(tier.lookup([])) == []
        assert not (await tier.store([], [])).failed
        assert not (await tier.load([], [])).failed
        await tier.remove([], RemoveReason.REQUESTED)

    async def test_a_buffer_that_is_longer_than_the_chunk_harms_nobody(self, tier: Any) -> None:
        keys = self.keys(1)
        await self.stored(tier, keys)
        buffers = aligned_buffers(1, 2 * self.CHUNK_BYTES)
        outcome = await Breaker(tier, slow_s=ANSWER_S).load(keys, buffers)  # so it may raise
        if outcome.succeeded:
            self.assert_right(keys, buffers)
        await self.stored(tier, keys)
        await self.assert_holds(tier, keys)

    async def test_concurrent_stores_and_loads_do_not_mix(self, tier: Any) -> None:
        keys = self.keys(12)
        batches = [keys[i : i + 3] for i in range(0, 12, 3)]
        await asyncio.gather(*(tier.store(batch, self.filled(batch)) for batch in batches))
        await asyncio.gather(*(self.assert_holds(tier, batch) for batch in batches))

    async def test_a_cancelled_store_leaves_its_buffers_alone_and_keeps_whole_chunks_or_none(
        self, tier: Any
    ) -> None:
        keys = self.keys(12)
        for turns in range(4):
            batch = keys[3 * turns : 3 * turns + 3]
            buffers = self.filled(batch)
            await cancelled(tier.store(batch, buffers), turns)
            overwrite(buffers)  # the slots are other chunks' from here on
            await self.assert_whole_or_missing(tier, batch)
        await tier.flush()
        await self.assert_whole_or_missing(tier, keys)
        await self.stored(tier, keys)
        await self.assert_holds(tier, keys)

    async def test_a_cancelled_load_leaves_its_buffers_alone(self, tier: Any) -> None:
        keys = self.keys(3)
        await self.stored(tier, keys)
        left = []
        for turns in range(4):
            buffers = self.empty(3)
            await cancelled(tier.load(keys, buffers), turns)
            overwrite(buffers)
            left += buffers
        await self.assert_holds(tier, keys)
        await tier.flush()
        assert {bytes(buffer) for buffer in left} == {OTHER_BYTE * self.CHUNK_BYTES}

    async def test_namespaces_do_not_mix_and_a_reset_forgets(self, tier: Any) -> None:
        """By the keys alone: kvtier puts the namespace in front of each."""
        if not self.ANY_KEY:
            return
        keys = self.keys(3)
        one, other = Namespaced(tier, b"1" * DIGEST_BYTES), Namespaced(tier, b"2" * DIGEST_BYTES)
        await self.stored(one, keys)
        assert await self.known(other, keys) == [False] * 3
        assert set((await other.load(keys, self.empty(3))).failed.values()) == {Failure.MISSING}
        await self.assert_holds(one, keys)
        await one.invalidate()
        assert await self.known(one, keys) == [False] * 3
        await self.stored(one, keys)
        await self.assert_holds(one, keys)

    async def test_a_tier_that_can_be_told_of_new_weights_forgets_what_was_stored_before(
        self, tier: Any
    ) -> None:
        invalidates = ability(tier, Invalidates)  # type: ignore[type-abstract]
        if invalidates is None:
            return
        keys = self.keys(3)
        await self.stored(tier, keys)
        await invalidates.invalidate()
        assert await self.known(tier, keys) == [False] * 3
        assert set((await tier.load(keys, self.empty(3))).failed.values()) == {Failure.MISSING}
        await self.stored(tier, keys)
        await self.assert_holds(tier, keys)

    async def test_a_tier_that_outlives_its_process_has_its_chunks_after_a_reopening(self, tier: Any) -> None:
        keys = self.keys(5)
        await self.stored(tier, keys)
        await tier.remove(keys[4:], RemoveReason.REQUESTED)
        await tier.flush()
        again = await self.reopened(tier)
        if again is None:
            return
        try:
            assert await self.known(again, keys) == [*[self.KEEPS] * 4, False]
            await self.assert_holds(again, keys[:4])
        finally:
            await again.close()

    async def test_stats_count_what_it_holds(self, tier: Any) -> None:
        before = tier.stats().chunks
        await self.stored(tier, self.keys(4))
        assert tier.stats().chunks - before == (4 if self.KEEPS else 0)

    async def test_a_closed_tier_fails_every_key_and_closes_twice(self, tier: Any) -> None:
        keys = self.keys(2)
        await self.stored(tier, keys)
        await tier.close()
        await tier.close()
        assert await self.known(tier, keys) == [False] * 2
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
        return [key in self.chunks and not self._closed for key in keys]

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
        sizes = list(map(len, list(self.chunks.values())))  # at once: any thread may ask
        return TierStats(len(sizes), sum(sizes), 0)

    async def close(self) -> None:
        self._closed = True


class Bare:
    """A tier with the protocol and nothing more: hides the optional abilities of another one."""

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self.lookup, self.store, self.load, self.remove = tier.lookup, tier.store, tier.load, tier.remove
        self.flush, self.stats, self.close = tier.flush, tier.stats, tier.close
