"""Jobs that share few slots: all come through, waiting for each other, or say in time that they did not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from chain_rig import SLOT_BYTES, CountingTier, Slots

from kvtier.engine.library import LibraryChain
from kvtier.engine.loaded import Loaded
from kvtier.engine.loop import LoopThread
from kvtier.engine.movement.losses import calling
from kvtier.tiers.base import Buffer, Failure, Outcome, RemoveReason
from kvtier.tiers.testing import MemoryTier, pattern

SLOTS = 4
JOBS = 12
SETTLE_S = 10.0
SHORT_S = 0.05  # a deadline that a test waits for


class Rig:
    """A chain over few slots, between a device and a tier below that are dicts."""

    def __init__(self, *, load_deadline_s: float = SETTLE_S, below: bool = True, slots: int = SLOTS) -> None:
        self.loop, self.pinned = LoopThread(), Slots(slots)
        self.device, self.lower = MemoryTier("gpu"), CountingTier()
        lower = [self.lower] if below else []
        self.chain = LibraryChain(self.pinned, lower, self.loop, load_deadlines_s={"memory": load_deadline_s})

    def stores(self, jobs: Sequence[Sequence[bytes]]) -> list[Outcome]:
        """Run store jobs side by side."""
        for keys in jobs:
            self.device.chunks |= {key: pattern(key, SLOT_BYTES) for key in keys}

        async def run() -> list[Outcome]:
            return await asyncio.gather(*(self.chain.store(self.device, keys, calling()) for keys in jobs))

        return self.loop.submit(run()).result(SETTLE_S)

    def loads(self, jobs: Sequence[Sequence[bytes]]) -> list[Outcome]:
        """Run load jobs side by side."""

        async def run() -> list[Outcome]:
            return await asyncio.gather(*(self.chain.load(self.device, keys) for keys in jobs))

        return self.loop.submit(run()).result(SETTLE_S)

    def close(self) -> None:
        self.loop.submit(self.chain.mover.stop()).result(SETTLE_S)
        self.chain.check()
        assert self.chain.stats().pinned_slots == 0
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def hasty() -> Iterator[Rig]:
    rig = Rig(load_deadline_s=SHORT_S)
    yield rig
    rig.close()


def keys_of(jobs: int, each: int = 1) -> list[list[bytes]]:
    return [[b"job-%d-%d" % (job, i) for i in range(each)] for job in range(jobs)]


@pytest.mark.parametrize("each", [1, 5])
def test_more_stores_than_slots_all_succeed(rig: Rig, each: int) -> None:
    jobs = keys_of(JOBS, each)
    assert [outcome.succeeded for outcome in rig.stores(jobs)] == [tuple(keys) for keys in jobs]
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    assert set(rig.lower.chunks) == {key for keys in jobs for key in keys}


def test_more_stores_than_slots_succeed_without_a_tier_below() -> None:
    rig = Rig(below=False)
    assert not any(outcome.failed for outcome in rig.stores(keys_of(JOBS)))
    rig.close()


@pytest.mark.parametrize("each", [1, 5])
def test_more_loads_than_slots_all_succeed(rig: Rig, each: int) -> None:
    jobs = keys_of(JOBS, each)
    chunks = {key: pattern(key, SLOT_BYTES) for keys in jobs for key in keys}
    rig.lower.chunks |= chunks
    assert [outcome.succeeded for outcome in rig.loads(jobs)] == [tuple(keys) for keys in jobs]
    assert rig.device.chunks == chunks


def test_jobs_that_want_the_same_chunks_in_opposite_orders_all_succeed(rig: Rig) -> None:
    keys = [b"shared-%d" % i for i in range(2 * SLOTS)]
    jobs = [keys, keys[::-1]] * 3
    assert not any(outcome.failed for outcome in rig.stores(jobs))
    assert not any(outcome.failed for outcome in rig.loads(jobs))


@pytest.mark.parametrize("way", ["store", "load"])
def test_a_job_waits_for_a_slot_no_longer_than_the_deadline(hasty: Rig, way: str) -> None:
    held = hasty.chain.reserve(hasty.chain.new_prompt(), [b"held-%d" % i for i in range(SLOTS)]).slots
    hasty.lower.chunks[b"x"] = bytes(SLOT_BYTES)
    (outcome,) = hasty.stores([[b"x"]]) if way == "store" else hasty.loads([[b"x"]])
    assert outcome.failed == {b"x": Failure.NO_SPACE}
    hasty.chain.abandon(held)


def test_a_store_of_a_chunk_that_somebody_else_never_ends_filling_says_so(hasty: Rig) -> None:
    held = hasty.chain.reserve(hasty.chain.new_prompt(), [b"x"]).slots
    (outcome,) = hasty.stores([[b"x", b"y"]])
    assert outcome.failed == {b"x": Failure.TIMEOUT}
    hasty.chain.abandon(held)


@pytest.mark.parametrize("end", ["commit", "abandon", "release"])
def test_a_slot_is_had_as_soon_as_another_thread_lets_go(rig: Rig, end: str) -> None:
    slots = rig.chain.reserve(rig.chain.new_prompt(), [b"held-%d" % i for i in range(SLOTS)]).slots
    if end == "release":
        rig.chain.commit(slots)
        rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)
        rig.chain.acquire(rig.chain.new_prompt(), [slot.key for slot in slots])
    room = rig.loop.submit(rig.chain.wait_for_room())
    rig.loop.submit(asyncio.sleep(0)).result(SETTLE_S)
    assert not room.done()
    getattr(rig.chain, end)(slots)
    assert room.result(SETTLE_S)


def test_a_removed_chunk_is_in_no_tier(rig: Rig) -> None:
    rig.stores([[b"a", b"b", b"c"]])
    rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)
    rig.loop.submit(rig.chain.remove([b"a", b"c", b"never stored"])).result(SETTLE_S)
    assert rig.chain.lookup([b"a", b"b", b"c"]) == [False, True, False]
    assert set(rig.lower.chunks) == {b"b"}
    tiers = rig.chain.stats().tiers
    assert (tiers["pinned"].counters["requested_chunks"], tiers["memory"].counters["requested_chunks"]) == (
        2,
        2,
    )


def test_a_chunk_removed_on_its_way_down_does_not_come_back(rig: Rig) -> None:
    rig.loop.submit(_call(rig.lower.gate.clear)).result(SETTLE_S)
    rig.stores([[b"a"], [b"b"]])  # one cascades, or both wait for their turn

    async def remove() -> None:
        removal = asyncio.ensure_future(rig.chain.remove([b"a", b"b"]))
        await asyncio.sleep(0)
        assert rig.chain.lookup([b"a", b"b"]) == [False, False], "hidden at once"
        rig.lower.gate.set()
        await removal

    rig.loop.submit(remove()).result(SETTLE_S)
    rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)
    assert rig.lower.chunks == {}
    assert rig.chain.lookup([b"a", b"b"]) == [False, False]
    assert rig.chain.stats().pinned_slots == 0


def test_a_chunk_promoted_while_it_is_removed_is_removed_too(rig: Rig) -> None:
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    remove = rig.lower.remove

    async def removed_after_a_promotion(keys: Sequence[bytes], reason: RemoveReason) -> None:
        slots, _ = await rig.chain.fetch(rig.chain.new_prompt(), [b"x"])
        rig.chain.release(slots)
        assert slots
        await remove(keys, reason)

    rig.lower.remove = removed_after_a_promotion  # type: ignore[method-assign]
    rig.loop.submit(rig.chain.remove([b"x"])).result(SETTLE_S)
    assert rig.chain.lookup([b"x"]) == [False]


def test_a_store_that_waits_for_the_queue_goes_on_when_queued_chunks_are_removed() -> None:
    rig = Rig(slots=16)
    rig.loop.submit(_call(rig.lower.gate.clear)).result(SETTLE_S)
    keys = [b"queued-%02d" % i for i in range(14)]  # all that may wait for the tier, which hangs with some
    rig.stores([keys])
    rig.device.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    store = rig.loop.submit(rig.chain.store(rig.device, [b"x"], calling()))
    rig.loop.submit(asyncio.sleep(0)).result(SETTLE_S)
    assert not store.done()
    removal = rig.loop.submit(rig.chain.remove(keys))
    assert store.result(SETTLE_S / 2).succeeded == (b"x",)
    rig.loop.submit(_call(rig.lower.gate.set)).result(SETTLE_S)
    removal.result(SETTLE_S)
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    assert set(rig.lower.chunks) == {b"x"}
    rig.close()


async def _call(function: Callable[[], object]) -> None:
    function()


def test_a_removal_does_not_wait_for_what_is_stored_after_it(rig: Rig) -> None:
    rig.loop.submit(_call(rig.lower.gate.clear)).result(SETTLE_S)
    rig.stores([[b"a"]])
    store = rig.lower.store
    later = asyncio.Event()

    async def held(keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        await later.wait()
        return await store(keys, buffers)

    async def remove() -> None:
        await rig.chain.mover.until(lambda: bool(rig.lower.log))  # the first one is on its way down
        rig.lower.store = held  # type: ignore[method-assign]
        removal = asyncio.ensure_future(rig.chain.remove([b"a"]))
        await asyncio.sleep(0)
        await rig.chain.store(rig.device, [b"a"], calling())
        rig.lower.gate.set()
        await removal
        later.set()

    rig.loop.submit(remove()).result(SETTLE_S)
    rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)


def test_a_load_tells_the_tier_below_what_came_from_slots_and_not_what_it_read_itself(rig: Rig) -> None:
    rig.stores([[b"a", b"b"]])
    rig.lower.chunks[b"x"] = pattern(b"x", SLOT_BYTES)
    rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)
    assert rig.lower.told == []
    for keys in ([b"a", b"x"], [b"x", b"missing"]):
        rig.loop.submit(rig.chain.load(rig.device, keys)).result(SETTLE_S)
    assert rig.lower.told == [b"a", b"x"]


@pytest.mark.parametrize("chunks", [SLOTS, SLOTS + 1, 3 * SLOTS])
def test_a_job_that_fills_all_slots_with_its_own_chunks_waits_for_nothing_for_ever(
    rig: Rig, chunks: int
) -> None:
    keys = [b"job-%02d" % number for number in range(chunks)]
    (stored,) = rig.stores([keys])
    assert stored.succeeded == tuple(keys)
    rig.loop.submit(rig.chain.mover.drain()).result(SETTLE_S)
    loaded = rig.loop.submit(rig.chain.load(rig.device, keys)).result(SETTLE_S)
    assert loaded.succeeded == tuple(keys)


# Deadlines, the pipeline of loads, and what a store holds.


class SlowTier(MemoryTier):
    """A tier whose loads each take some time."""

    load_s = 0.0

    async def load(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        self.log.append(("began", tuple(keys)))
        await asyncio.sleep(self.load_s)
        return await super().load(keys, buffers)


class Chained:
    """A library's chain over some tiers."""

    def __init__(self, *lower: MemoryTier, slots: int = 16, deadlines_s: Mapping[str, float]) -> None:
        self.loop, self.device = LoopThread(), MemoryTier("gpu")
        self.chain = LibraryChain(Slots(slots), lower, self.loop, load_deadlines_s=deadlines_s)

    def load(self, keys: Sequence[bytes]) -> Loaded:
        return self.loop.submit(self.chain.load(self.device, keys)).result(SETTLE_S)

    def counted(self, name: str, tier: str) -> int:
        return self.chain.stats().tiers[tier].counters[name]

    def close(self, *gated: MemoryTier) -> None:
        for tier in gated:
            self.loop.submit(_call(tier.gate.set)).result(SETTLE_S)
        self.loop.submit(self.chain.mover.stop()).result(SETTLE_S)
        self.chain.check()
        assert self.chain.stats().pinned_slots == 0
        self.loop.close()


def filled(tier: MemoryTier, keys: Sequence[bytes]) -> None:
    tier.chunks.update({key: pattern(key, SLOT_BYTES) for key in keys})


def test_the_deadline_is_of_the_load_and_not_of_each_batch() -> None:
    slow = SlowTier()
    slow.load_s = SHORT_S
    rig = Chained(slow, slots=16, deadlines_s={"memory": 2 * SHORT_S})
    keys = [b"%d" % number for number in range(1000)]  # 500 batches, each in time by itself
    filled(slow, keys)
    outcome = rig.load(keys)  # 25 s of loads
    assert set(outcome.failed.values()) <= {Failure.TIMEOUT, Failure.NO_SPACE}
    assert len(outcome.failed) > len(keys) // 2
    assert outcome.succeeded == tuple(keys[: len(outcome.succeeded)]), "the head came"
    assert rig.counted("late_loads", "memory") > 0
    rig.close()


def test_each_tier_has_a_deadline_of_its_own() -> None:
    hasty, patient = MemoryTier("hasty"), SlowTier("patient")
    patient.load_s = 4 * SHORT_S
    rig = Chained(hasty, patient, deadlines_s={"hasty": SHORT_S, "patient": SETTLE_S})
    filled(hasty, [b"a"])
    filled(patient, [b"b"])
    rig.loop.submit(_call(hasty.gate.clear)).result(SETTLE_S)
    outcome = rig.load([b"a", b"b"])
    assert outcome == Loaded((b"b",), {b"a": Failure.TIMEOUT}, sources={b"b": "patient"})
    assert (rig.counted("late_loads", "hasty"), rig.counted("late_loads", "patient")) == (1, 0)
    rig.close(hasty)


def test_the_next_batch_is_read_while_one_is_copied() -> None:
    lower = MemoryTier()
    rig = Chained(lower, slots=16, deadlines_s={"memory": SETTLE_S})
    keys = [b"%d" % number for number in range(8)]
    filled(lower, keys)
    rig.loop.submit(_call(rig.device.gate.clear)).result(SETTLE_S)
    load = rig.loop.submit(rig.chain.load(rig.device, keys))
    rig.loop.submit(_until(lambda: bool(rig.device.log))).result(SETTLE_S)
    first = rig.device.log[0][1]  # its copy hangs
    rig.loop.submit(_until(lambda: len(lower.log) == 2)).result(SETTLE_S)
    assert lower.log == [("load", first), ("load", tuple(keys[len(first) : 2 * len(first)]))]
    rig.loop.submit(_call(rig.device.gate.set)).result(SETTLE_S)
    assert load.result(SETTLE_S).succeeded == tuple(keys)
    rig.close()


def test_a_store_that_waits_for_a_drive_holds_no_slot_and_has_not_begun_to_copy() -> None:
    lower = MemoryTier()
    rig = Chained(lower, slots=8, deadlines_s={"memory": SETTLE_S})
    keys = [b"%d" % number for number in range(20)]
    filled(rig.device, keys)
    rig.loop.submit(_call(lower.gate.clear)).result(SETTLE_S)
    store = rig.loop.submit(rig.chain.store(rig.device, keys, calling()))
    rig.loop.submit(_until(lambda: rig.chain.stats().pending_chunks["memory"] == 7)).result(SETTLE_S)
    assert sum(len(copied) for _, copied in rig.device.log) == 7, "seven eighths may wait; no copy hangs"
    assert rig.chain.stats().pinned_slots == 7
    rig.loop.submit(_call(lower.gate.set)).result(SETTLE_S)
    assert store.result(SETTLE_S).succeeded == tuple(keys)
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    assert set(lower.chunks) == set(keys)
    rig.close()


@pytest.mark.parametrize("slots", [1, 2])
def test_one_slot_is_enough(slots: int) -> None:
    lower = MemoryTier()
    rig = Chained(lower, slots=slots, deadlines_s={"memory": SETTLE_S})
    keys = [b"%d" % number for number in range(6)]
    filled(rig.device, keys)
    assert rig.loop.submit(rig.chain.store(rig.device, keys, calling())).result(SETTLE_S).succeeded == tuple(
        keys
    )
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    assert set(lower.chunks) == set(keys)
    rig.device.chunks.clear()
    assert rig.load(keys).succeeded == tuple(keys)
    rig.close()


def test_a_tier_that_raises_in_a_lookup_leaves_no_pin() -> None:
    class Raising(MemoryTier):
        raises = False

        def lookup(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
            if self.raises:
                raise ValueError("a mistake")
            return super().lookup(keys)

    lower = Raising()
    rig = Chained(lower, slots=8, deadlines_s={"memory": SETTLE_S})
    filled(rig.device, [b"a"])
    rig.loop.submit(rig.chain.store(rig.device, [b"a"], calling())).result(SETTLE_S)
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    lower.raises = True
    for _ in range(10):
        with pytest.raises(ValueError, match="a mistake"):
            rig.load([b"a", b"absent"])
    lower.raises = False
    rig.close()


class Unsure(MemoryTier):
    """A tier that finds out what it has when it is asked, and knows when it is asked again."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[bytes] = set()

    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        hits = [key in self.chunks if key in self.known else None for key in keys]
        self.known.update(keys)
        return hits


def test_a_load_waits_for_a_tier_that_finds_out_whether_it_has_a_chunk() -> None:
    lower = Unsure()
    rig = Chained(lower, deadlines_s={"memory": SETTLE_S})
    filled(lower, [b"a", b"b"])
    loaded = rig.load([b"a", b"absent", b"b"])
    sources = {b"a": "memory", b"b": "memory"}
    assert loaded == Loaded((b"a", b"b"), {b"absent": Failure.MISSING}, sources=sources)
    rig.close()


def test_chunks_are_prefetched_into_slots_and_found_by_tier() -> None:
    lower = MemoryTier()
    rig = Chained(lower, deadlines_s={"memory": SETTLE_S})
    filled(lower, [b"a", b"b"])
    assert rig.chain.contains([b"a", b"absent"]) == ["memory", None]
    outcome = rig.loop.submit(rig.chain.prefetch([b"a", b"absent"])).result(SETTLE_S)
    assert outcome == Outcome((b"a",), {b"absent": Failure.MISSING})
    assert rig.chain.contains([b"a", b"b"]) == ["pinned", "memory"]
    rig.close()


def test_nothing_is_found_after_a_clear() -> None:
    lower = MemoryTier()
    rig = Chained(lower, deadlines_s={"memory": SETTLE_S})
    filled(rig.device, [b"a"])
    rig.loop.submit(rig.chain.store(rig.device, [b"a"], calling())).result(SETTLE_S)
    rig.loop.submit(rig.chain.clear(RemoveReason.REQUESTED)).result(SETTLE_S)
    assert rig.chain.lookup([b"a"]) == [False]
    rig.loop.submit(rig.chain.mover.flush(None)).result(SETTLE_S)
    assert not lower.chunks
    rig.close()


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - other tasks bring it about
        await asyncio.sleep(0)
