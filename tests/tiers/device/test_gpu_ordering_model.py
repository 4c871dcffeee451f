"""A gpu tier driven at random by a caller that keeps to the rules, under the race detector.

The model knows what every block and slot holds in program order; None where a transfer into it failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from gpu_saboteurs import Deaf, Forgetful, Hasty, Heedless, Stale
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from ordering_rig import BLOCKS, NOBODYS, SLOTS, Rig, Stepped, stepped_cuda, stepped_threads
from race_detector import RaceDetector

from kvtier.tiers.base import Outcome
from kvtier.tiers.device.copies import CopyJob, Lane
from kvtier.tiers.device.gpu import GpuTier

LANE = st.sampled_from(list(Lane))
BLOCK = st.integers(0, BLOCKS - 1)
SLOT = st.integers(0, SLOTS - 1)
VALUE = st.integers(0, NOBODYS - 1)
PAIRS = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        st.lists(BLOCK, min_size=count, max_size=count, unique=True),
        st.lists(SLOT, min_size=count, max_size=count, unique=True),
    )
)
FAILS_AT = st.none() | st.integers(0, 5)  # mostly within the runs of a transfer


@dataclass(eq=False)
class Transfer:
    """One job under way, or one call, which the caller may cancel."""

    lane: Lane
    blocks: Sequence[int]
    slots: Sequence[int]
    under_way: CopyJob | asyncio.Task[Outcome]

    def shares(self, blocks: Sequence[int], slots: Sequence[int]) -> bool:
        return not (set(self.blocks).isdisjoint(blocks) and set(self.slots).isdisjoint(slots))

    def failed(self) -> bool:
        if isinstance(self.under_way, asyncio.Task):
            return self.under_way.cancelled() or bool(self.under_way.result().failed)
        return self.under_way.error is not None


class Caller(RuleBasedStateMachine):
    def __init__(self, copies: Callable[[RaceDetector], Stepped], tier: type[GpuTier] = GpuTier) -> None:
        super().__init__()
        self.rig = Rig(copies, tier)
        self.loop = asyncio.new_event_loop()
        self.blocks: list[int | None] = [NOBODYS] * BLOCKS
        self.slots: list[int | None] = [NOBODYS] * SLOTS
        self.writer: dict[tuple[str, int], Transfer] = {}  # the last transfer into a block or a slot
        self.transfers: list[Transfer] = []
        self.reads: list[tuple[int, int]] = []  # what each kernel that reads has to see

    @rule(block=BLOCK, value=VALUE)
    def write(self, block: int, value: int) -> None:
        if not any(transfer.shares([block], []) for transfer in self.transfers):
            self.blocks[block] = value
            self.writer.pop(("block", block), None)
            self.rig.write(block, value)

    @rule(block=BLOCK)
    def read(self, block: int) -> None:
        loading = any(t.shares([block], []) for t in self.transfers if t.lane is not Lane.STORE)
        value = self.blocks[block]
        if not loading and value is not None:
            self.reads.append((block, value))
            self.rig.read(block)

    @rule(slot=SLOT, value=VALUE)
    def fill(self, slot: int, value: int) -> None:
        if not any(transfer.shares([], [slot]) for transfer in self.transfers):
            self.slots[slot] = value
            self.writer.pop(("slot", slot), None)
            self.rig.fill(slot, value)

    @rule(pairs=PAIRS, fails_at=FAILS_AT, as_tier=st.booleans())
    def store(self, pairs: tuple[list[int], list[int]], fails_at: int | None, as_tier: bool) -> None:
        blocks, slots = pairs
        if not self._free_for(Lane.STORE, blocks, slots):
            return
        self.rig.copies.fails_at = fails_at
        transfer = Transfer(Lane.STORE, blocks, slots, self._start(Lane.STORE, blocks, slots, as_tier))
        for block, slot in zip(blocks, slots, strict=True):
            self.slots[slot] = self.blocks[block]
            self.writer["slot", slot] = transfer
        self.transfers.append(transfer)

    @rule(pairs=PAIRS, fails_at=FAILS_AT, as_tier=st.booleans(), expedited=st.booleans())
    def load(
        self, pairs: tuple[list[int], list[int]], fails_at: int | None, as_tier: bool, expedited: bool
    ) -> None:
        blocks, slots = pairs
        lane = Lane.EXPEDITED if expedited and not as_tier else Lane.LOAD
        if not self._free_for(lane, blocks, slots):
            return
        self.rig.copies.fails_at = fails_at
        transfer = Transfer(lane, blocks, slots, self._start(lane, blocks, slots, as_tier))
        for block, slot in zip(blocks, slots, strict=True):
            self.blocks[block] = self.slots[slot]
            self.writer["block", block] = transfer
        self.transfers.append(transfer)

    @rule(which=st.integers(0, 5))
    def cancel(self, which: int) -> None:
        tasks = [t.under_way for t in self.transfers if isinstance(t.under_way, asyncio.Task)]
        if tasks:
            tasks[which % len(tasks)].cancel()
            self._pump()

    @rule(lane=LANE, runs=st.integers(1, 4))
    def step(self, lane: Lane, runs: int) -> None:
        for _ in range(runs):
            self.rig.copies.step(lane)
        self._pump()

    @rule(kernels=st.integers(1, 4))
    def compute(self, kernels: int) -> None:
        for _ in range(kernels):
            self.rig.copies.run_kernel()
        self._pump()

    @invariant()
    def nobody_was_too_early(self) -> None:
        self.rig.detector.check()

    @invariant()
    def kernels_have_read_what_they_should(self) -> None:
        assert self.rig.seen == self.reads[: len(self.rig.seen)]

    @invariant()
    def finished_transfers_have_done_what_they_should(self) -> None:
        over = [transfer for transfer in self.transfers if transfer.under_way.done()]
        self.transfers = [transfer for transfer in self.transfers if transfer not in over]
        for transfer in over:
            if transfer.failed():
                self._forget(transfer)
        for transfer in over:
            for slot in transfer.slots:
                self._check_slot(slot)

    def teardown(self) -> None:
        try:
            self.rig.copies.free()
            tasks = [t.under_way for t in self.transfers if isinstance(t.under_way, asyncio.Task)]
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=10))
            self.nobody_was_too_early()
            self.finished_transfers_have_done_what_they_should()
            assert not self.transfers
            for block in range(BLOCKS):
                self.read(block)
            self.rig.copies.free()
            assert self.rig.seen == self.reads
            for slot in range(SLOTS):
                self._check_slot(slot)
            self.nobody_was_too_early()
        finally:
            self.loop.close()
            self.rig.close()

    def _free_for(self, lane: Lane, blocks: Sequence[int], slots: Sequence[int]) -> bool:
        """Whether a caller that keeps to rules 1, 3 and 4 may submit this now."""
        return not any(t.shares(blocks, slots) for t in self.transfers if t.lane is not lane)

    def _start(
        self, lane: Lane, blocks: Sequence[int], slots: Sequence[int], as_tier: bool
    ) -> CopyJob | asyncio.Task[Outcome]:
        if not as_tier:
            if lane is Lane.STORE:
                return self.rig.store(blocks, slots)
            return self.rig.load(blocks, slots, expedited=lane is Lane.EXPEDITED)
        keys = [bytes([block]) for block in blocks]
        view = self.rig.gpu.blocks(keys, blocks)
        call = view.load if lane is Lane.STORE else view.store
        task = self.loop.create_task(call(keys, [self.rig.slots[slot] for slot in slots]))
        self._pump()
        return task

    def _pump(self) -> None:
        for _ in range(4):  # a copy's end reaches the task that awaits it through three callbacks
            self.loop.run_until_complete(asyncio.sleep(0))

    def _forget(self, transfer: Transfer) -> None:
        """What a failed transfer wrote is unknown, unless somebody else has written it since."""
        for slot in transfer.slots:
            if self.writer.get(("slot", slot)) is transfer:
                self.slots[slot] = None
        for block in transfer.blocks:
            if self.writer.get(("block", block)) is transfer:
                self.blocks[block] = None

    def _check_slot(self, slot: int) -> None:
        value = self.slots[slot]
        busy = any(t.shares([], [slot]) for t in self.transfers if t.lane is Lane.STORE)
        if value is not None and not busy:
            assert self.rig.slot(slot) == value


def caller(copies: Callable[[RaceDetector], Stepped], tier: type[GpuTier] = GpuTier) -> type[Caller]:
    class CallerOfThese(Caller):
        def __init__(self) -> None:
            super().__init__(copies, tier)

    return CallerOfThese


PLENTY = settings(max_examples=100, stateful_step_count=40, deadline=None)
UNTIL_CAUGHT = settings(PLENTY, max_examples=500, derandomize=True, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("copies", [stepped_threads, stepped_cuda])
def test_no_byte_is_touched_too_early_whatever_the_order(copies):
    run_state_machine_as_test(caller(copies), settings=PLENTY)


@pytest.mark.parametrize(
    ("copies", "tier"),
    [
        (Heedless, GpuTier),
        (Deaf, GpuTier),
        (Hasty, GpuTier),
        (Forgetful, GpuTier),
        (stepped_threads, Stale),
        (stepped_cuda, Stale),
    ],
)
def test_a_tier_that_breaks_a_rule_is_caught_at_random_as_well(copies, tier):
    with pytest.raises(AssertionError, match=r"(begins before the end of|in no order with|touches what is)"):
        run_state_machine_as_test(caller(copies, tier), settings=UNTIL_CAUGHT)
