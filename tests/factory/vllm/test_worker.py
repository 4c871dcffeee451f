"""What a worker reports of its copies, and what it marks in the arena; no vLLM is involved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from kvtier.factory.vllm.worker import SLOTS_MARKED_AT_ONCE, TRANSFER_SLOTS, UNMARKED_MAX, CopyWorker
from kvtier.tiers.pinned.arena import Arena

PART_BYTES = 4096
SLOTS = 8


class Finished(NamedTuple):
    """What a release of vLLM gets as the result of a transfer."""

    job_id: int
    succeeded: bool
    size_bytes: int
    seconds: float


class Copy:
    """A copy that ends when the test says so."""

    size_bytes, seconds = PART_BYTES, 0.5

    def __init__(self) -> None:
        self.error: str | None = None
        self.has_ended = False

    def done(self) -> bool:
        return self.has_ended


class Gpu:
    """A device whose copies are the test's."""

    part_bytes = PART_BYTES

    def __init__(self) -> None:
        self.copies: list[Copy] = []

    def submit_store(self, spans: Any, addresses: Any) -> Copy:
        self.copies.append(Copy())
        return self.copies[-1]

    def submit_load(self, spans: Any, addresses: Any, *, expedited: bool) -> Copy:
        return self.submit_store(spans, addresses)

    def close_now(self) -> None:
        pass


class Rig:
    def __init__(self) -> None:
        self.gpu, self.arena = Gpu(), Arena.private(SLOTS, PART_BYTES)
        self.worker = CopyWorker(self.gpu, self.arena, rank=0, part=0)  # type: ignore[arg-type]

    def store(self, job_id: int, *slots: int) -> Copy:
        self.worker.store(job_id, None, np.array(slots, np.int32))  # type: ignore[arg-type]
        return self.gpu.copies[-1]

    def load(self, job_id: int, *slots: int, expedited: bool = False) -> Copy:
        self.worker.load(job_id, None, np.array(slots, np.int32), expedited=expedited)  # type: ignore[arg-type]
        return self.gpu.copies[-1]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.arena.close()


def ended(job_id: int, *, succeeded: bool = True) -> Finished:
    return Finished(job_id, succeeded, PART_BYTES, 0.5)


def test_each_copy_is_reported_once_and_its_slots_are_marked(rig: Rig) -> None:
    store, load = rig.store(1, 0, 1), rig.load(2, 2, 2, 3)
    assert rig.worker.finished(Finished) == []
    assert rig.arena.transfers_done(0, stores=0, loads=0)
    store.has_ended = load.has_ended = True
    assert rig.worker.finished(Finished) == [ended(1), ended(2)]
    assert rig.worker.finished(Finished) == [], "there is time to mark them"
    assert rig.arena.transfers_done(1, stores=1, loads=0)
    assert rig.arena.transfers_done(2, stores=0, loads=2)
    assert rig.arena.transfers_done(3, stores=0, loads=1)


def test_a_copy_that_ends_waits_for_those_before_it_in_its_lane_alone(rig: Rig) -> None:
    first, second = rig.load(1, 0), rig.load(2, 1)
    overtakes, store = rig.load(3, 2, expedited=True), rig.store(4, 3)
    second.has_ended = overtakes.has_ended = store.has_ended = True
    assert sorted(rig.worker.finished(Finished)) == [ended(3), ended(4)]
    first.has_ended = True
    assert rig.worker.finished(Finished) == [ended(1), ended(2)]


def test_a_store_that_failed_is_marked_and_a_load_that_failed_is_told(rig: Rig) -> None:
    store, load = rig.store(1, 0), rig.load(2, 1)
    store.error = load.error = "the device is gone"
    store.has_ended = load.has_ended = True
    assert rig.worker.finished(Finished) == [ended(1), ended(2, succeeded=False)]
    assert rig.arena.stores_failed([0, 1]) == [True, False]
    assert rig.arena.transfers_done(0, stores=1, loads=0)
    rig.store(3, 0).has_ended = True
    assert rig.worker.finished(Finished) == [ended(3)]
    assert rig.arena.stores_failed([0]) == [False]


def test_a_worker_that_always_has_something_to_report_marks_it_in_time(rig: Rig) -> None:
    for number in range(UNMARKED_MAX + 2):
        rig.load(number, 0).has_ended = True
        assert rig.worker.finished(Finished) == [ended(number)]
    assert rig.arena.transfers_done(0, stores=0, loads=2)


def test_a_worker_with_little_to_report_marks_all_in_a_few_calls(rig: Rig) -> None:
    a_call = math.ceil(SLOTS_MARKED_AT_ONCE / (1 + TRANSFER_SLOTS))
    for number in range(2 * a_call):
        rig.load(number, 0).has_ended = True
    assert len(rig.worker.finished(Finished)) == 2 * a_call
    for done in (0, 1, 2):
        assert rig.arena.transfers_done(0, stores=0, loads=done * a_call)
        assert rig.worker.finished(Finished) == []


def test_marks_are_there_at_once_for_who_asks_for_them(rig: Rig) -> None:
    rig.store(1, 0).has_ended = True
    rig.worker.finished(Finished)
    rig.worker.mark()
    assert rig.arena.transfers_done(0, stores=1, loads=0)


def test_with_nothing_in_flight_no_lane_is_looked_at(rig: Rig) -> None:
    rig.store(1, 0).has_ended = True
    rig.worker.finished(Finished)
    rig.worker.finished(Finished)
    rig.worker._lanes = None  # type: ignore[assignment]
    assert rig.worker.finished(Finished) == []
