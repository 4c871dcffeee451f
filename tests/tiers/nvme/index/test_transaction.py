"""The order of age and the totals of segments, whatever is put and dropped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.tiers.nvme.index.environment import Index
from kvtier.tiers.nvme.index.records import LEGAL, Segment, SegmentState
from kvtier.tiers.nvme.index.transaction import Transaction

FREE, OPEN, SEALED, RECLAIMING = SegmentState
STEPS = 400


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index.open(tmp_path / "index", 1 << 20)
    yield index
    index.close()


def segment(state: SegmentState, opened: int, allocated_bytes: int = 10) -> Segment:
    return Segment(state, 1, opened, 2, 0, 0, allocated_bytes)


def assert_in_step(txn: Transaction) -> None:
    """What is kept beside the records says what a walk over all of them would find."""
    records = txn.segments()
    for state in SegmentState:
        of_state = [(one.opened, number) for number, one in records.items() if one.state is state]
        assert [number for number, _ in txn.by_age(state)] == [number for _, number in sorted(of_state)]
        allocated_bytes = sum(records[number].allocated_bytes for _, number in of_state)
        assert txn.totals(state) == (len(of_state), allocated_bytes)
    everything = sum(one.allocated_bytes for one in records.values())
    assert txn.totals() == (len(records), everything)
    for left_out in [*records, 0]:
        others = [one.opened for number, one in records.items() if number != left_out]
        assert txn.oldest_opened(other_than=left_out) == min(others, default=None)


def test_segments_of_several_states_come_the_oldest_first(index: Index) -> None:
    states = {3: segment(OPEN, 9), 1: segment(SEALED, 7), 2: segment(SEALED, 8), 4: segment(FREE, 1)}

    def put(txn: Transaction) -> None:
        for number, one in states.items():
            txn.put_segment(number, one)

    index.write(put)
    with index.read() as txn:
        assert [number for number, _ in txn.by_age(OPEN, SEALED)] == [1, 2, 3]
        assert dict(txn.by_age(*SegmentState)) == states
        assert txn.totals(OPEN, FREE) == (2, 20)
        assert txn.oldest_opened(other_than=4) == 7


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_age_and_the_totals_follow_the_records(index: Index, seed: int) -> None:
    rng = random.Random(seed)

    def step(txn: Transaction) -> None:
        number = rng.randrange(12)
        before = txn.segment(number)
        if before is not None and rng.random() < 0.2:
            txn.drop_segment(number)
            return
        states = LEGAL[before.state] | {before.state} if before is not None else set(SegmentState)
        state = rng.choice(sorted(states))
        txn.put_segment(number, segment(state, rng.randrange(50), rng.randrange(100)))

    for _ in range(STEPS):
        index.write(step)
    with index.read() as txn:
        assert_in_step(txn)
        assert len(txn.segments()) > 4


def test_a_transaction_that_fails_leaves_both_as_they_were(index: Index) -> None:
    index.write(lambda txn: txn.put_segment(1, segment(SEALED, 1)))

    def refuse(txn: Transaction) -> None:
        txn.put_segment(2, segment(OPEN, 2))
        txn.drop_segment(1)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        index.write(refuse)
    with index.read() as txn:
        assert_in_step(txn)
        assert txn.totals() == (1, 10)
