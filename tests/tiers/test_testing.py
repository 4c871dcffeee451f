"""The contract itself: tiers that keep it pass, and each way of breaking a promise fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvtier.tiers import testing
from kvtier.tiers.base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, Tier
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.tier import PinnedTier
from kvtier.tiers.testing import MemoryTier, TierContract

CHECKS = [name for name in dir(TierContract) if name.startswith("test_")]


class TestMemoryTier(TierContract):
    @pytest.fixture
    async def tier(self) -> MemoryTier:
        return MemoryTier()


class TestPinnedTier(TierContract):
    @pytest.fixture
    async def tier(self) -> Any:
        tier = PinnedTier(Arena.private(16, self.CHUNK_BYTES))
        yield tier
        await tier.close()


class AskingTier(MemoryTier):
    """Has to ask elsewhere: the first lookup of a key since it was last stored or removed says None."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: set[ChunkKey] = set()

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        known = [key in self._asked for key in keys]
        self._asked.update(keys)
        found = super().lookup(keys)
        return [hit if is_known else None for hit, is_known in zip(found, known, strict=True)]


class TestAskingTier(TierContract):
    @pytest.fixture
    async def tier(self) -> AskingTier:
        return AskingTier()


class SharedTier(MemoryTier):
    """Outlives its process: what it keeps is a dictionary of somebody else's."""

    def __init__(self, chunks: dict[ChunkKey, bytes]) -> None:
        super().__init__()
        self.chunks = chunks


class TestSharedTier(TierContract):
    @pytest.fixture
    async def tier(self) -> SharedTier:
        return SharedTier({})

    async def reopened(self, tier: Tier) -> Tier:
        await tier.close()
        assert isinstance(tier, SharedTier)
        return SharedTier(tier.chunks)


class ThreadedTier(MemoryTier):
    """Copies in a thread that a cancelled call does not wait for; the next call sees it end."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []
        self.goes_on = threading.Event()

    async def in_thread(self, copy: Callable[[], None]) -> None:
        for thread in self.ended():
            thread.join()
        self.goes_on.clear()
        copied = asyncio.Event()
        loop = asyncio.get_running_loop()

        def run() -> None:
            self.goes_on.wait()
            try:
                copy()
            finally:
                loop.call_soon_threadsafe(copied.set)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        for _ in range(10):
            await asyncio.sleep(0)
        self.goes_on.set()
        await copied.wait()

    def ended(self) -> list[threading.Thread]:
        self.goes_on.set()
        ended, self.threads = self.threads, []
        return ended

    async def flush(self) -> None:
        for thread in self.ended():
            thread.join()


class DirtyTier(ThreadedTier):
    """Reads the buffers of a cancelled store after that has returned."""

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self._closed:
            return await super().store(keys, buffers)

        def copy() -> None:
            for key, buffer in zip(keys, buffers, strict=True):
                self.chunks.setdefault(key, bytes(buffer))

        await self.in_thread(copy)
        return Outcome(tuple(keys))


class LateTier(ThreadedTier):
    """Writes to the buffers of a cancelled load after that has returned."""

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        failed = {key: Failure.MISSING for key in keys if key not in self.chunks}
        if self._closed or failed:
            return await super().load(keys, buffers)

        def copy() -> None:
            for key, buffer in zip(keys, buffers, strict=True):
                buffer[: len(self.chunks[key])] = self.chunks[key]

        await self.in_thread(copy)
        return Outcome(tuple(keys))


class ViewingTier(MemoryTier):
    """Keeps the buffer and not its bytes."""

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        for key, buffer in zip(keys, buffers, strict=True):
            self.chunks.setdefault(key, buffer)  # type: ignore[arg-type]
        return Outcome(tuple(keys)) if not self._closed else await super().store(keys, buffers)


class AliasingTier(MemoryTier):
    """Knows a key by a part of it only."""

    part = slice(None)

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return super().lookup([key[self.part] for key in keys])

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await super().store([key[self.part] for key in keys], buffers)
        return Outcome(tuple(keys)) if outcome.succeeded else Outcome.of(keys, _all(keys, Failure.CLOSED))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await super().load([key[self.part] for key in keys], buffers)
        failed = {key: outcome.failed[key[self.part]] for key in keys if key[self.part] in outcome.failed}
        return Outcome.of(keys, failed)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await super().remove([key[self.part] for key in keys], reason)


class TailTier(AliasingTier):
    """Blind to namespaces, which stand in front."""

    part = slice(-8, None)


class HeadTier(AliasingTier):
    """Cuts long keys."""

    part = slice(0, 64)


class UndeadTier(MemoryTier):
    """Answers after it was closed."""

    async def close(self) -> None:
        """Nothing."""


class HalfDeadTier(MemoryTier):
    """Says that it has chunks after it was closed, and refuses to load them."""

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return [key in self.chunks for key in keys]


class ShortTier(MemoryTier):
    """Answers for what it has only."""

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return [hit for hit in super().lookup(keys) if hit]


class SilentTier(MemoryTier):
    """Tells nothing of a key that it does not have."""

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await super().load(keys, buffers)
        return outcome if self._closed else Outcome(outcome.succeeded)


class UnsureTier(MemoryTier):
    """Never finds out."""

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return [None] * len(keys)


class RaisingTier(MemoryTier):
    """Raises for a key that it does not have."""

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        for key in keys if not self._closed else ():
            self.chunks[key]
        return await super().load(keys, buffers)


class ClingingTier(MemoryTier):
    """Removes nothing."""

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        """Nothing."""


class DeafTier(MemoryTier):
    """Serves what was stored before the weights changed."""

    async def invalidate(self) -> None:
        """Nothing."""


class SwappingTier(MemoryTier):
    """Gives each key of a batch the bytes of another."""

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await super().load(keys, list(reversed(buffers)))


def _all(keys: Sequence[ChunkKey], why: Failure) -> dict[ChunkKey, Failure]:
    return dict.fromkeys(keys, why)


BAD = {
    DirtyTier: "test_a_cancelled_store_leaves_its_buffers_alone_and_keeps_whole_chunks_or_none",
    LateTier: "test_a_cancelled_load_leaves_its_buffers_alone",
    ViewingTier: "test_a_stored_chunk_is_found_and_reads_back",
    TailTier: "test_namespaces_do_not_mix_and_a_reset_forgets",
    HeadTier: "test_the_shortest_and_the_longest_keys_differ_from_their_like",
    UndeadTier: "test_a_closed_tier_fails_every_key_and_closes_twice",
    HalfDeadTier: "test_a_closed_tier_fails_every_key_and_closes_twice",
    ShortTier: "test_an_unknown_key_is_a_miss_among_hits",
    SilentTier: "test_an_unknown_key_is_a_miss_among_hits",
    UnsureTier: "test_a_stored_chunk_is_found_and_reads_back",
    RaisingTier: "test_an_unknown_key_is_a_miss_among_hits",
    ClingingTier: "test_a_removed_chunk_is_a_miss_and_can_come_back",
    DeafTier: "test_a_tier_that_can_be_told_of_new_weights_forgets_what_was_stored_before",
    SwappingTier: "test_a_stored_chunk_is_found_and_reads_back",
}


async def failed(contract: TierContract, make: Callable[[], MemoryTier]) -> set[str]:
    """The checks that a tier of this kind does not pass."""
    names = set()
    for name in CHECKS:
        tier = make()
        try:
            await getattr(contract, name)(tier)
        except Exception:
            names.add(name)
        await tier.flush()
    return names


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.__name__)
async def test_a_tier_that_breaks_a_promise_fails(
    kind: type[MemoryTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "ANSWER_S", 0.01)
    assert BAD[kind] in await failed(TierContract(), kind)


class Forgetful(TierContract):
    """The contract over a tier that comes back empty."""

    async def reopened(self, tier: Tier) -> Tier:
        await tier.close()
        return MemoryTier()


async def test_a_tier_that_says_it_outlives_its_process_and_does_not_fails() -> None:
    reopening = "test_a_tier_that_outlives_its_process_has_its_chunks_after_a_reopening"
    assert await failed(Forgetful(), MemoryTier) == {reopening}
