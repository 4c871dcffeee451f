"""The queue of one tier below: order, bounds, pauses, and one place for each key."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.engine.movement.queues import (
    BATCH_BYTES,
    CALLS_IN_FLIGHT_MAX,
    PAUSE_MAX_S,
    PAUSE_S,
    Limits,
    TierQueue,
)
from kvtier.tiers.base import Failure, Outcome

KEYS = [b"%d" % number for number in range(12)]
RETRIED = [Failure.IO_ERROR, Failure.GONE, Failure.NOT_ALLOWED, Failure.NO_RESOURCES, Failure.DROPPED]
FINAL = [Failure.INDEX_FULL, Failure.CLOSED, Failure.MISSING, Failure.CORRUPT]
WIDE = Limits(4, 16, 100)


def failed(keys: list[bytes], why: Failure) -> Outcome:
    return Outcome(failed=dict.fromkeys(keys, why))


def queue_of(*keys: bytes, limits: Limits = WIDE) -> TierQueue:
    queue = TierQueue(limits)
    assert not queue.owe(keys)
    return queue


@pytest.mark.parametrize(
    ("chunk_bytes", "slots_count", "limits"),
    [
        (256 << 20, 1000, Limits(1, 1, 256)),  # a chunk larger than a batch: one at a time
        (64 << 20, 1000, Limits(1, 4, 1024)),
        (1 << 20, 100_000, Limits(64, 256, 65536)),
        (1 << 10, 64, Limits(8, 16, 1 << 18)),  # few slots: no more than a quarter of them is on its way
        (1 << 10, 1, Limits(1, 1, 1 << 18)),
    ],
)
def test_bounds_are_in_bytes_and_at_least_one_chunk(
    chunk_bytes: int, slots_count: int, limits: Limits
) -> None:
    assert Limits.of(chunk_bytes, slots_count, BATCH_BYTES) == limits


def test_what_was_owed_first_moves_first_and_no_more_than_may_be_on_its_way() -> None:
    queue = queue_of(*KEYS, limits=Limits(4, 6, 100))
    assert queue.take(0.0, is_urgent=False) == KEYS[:4]
    assert queue.take(0.0, is_urgent=False) == KEYS[4:6]
    assert queue.take(0.0, is_urgent=False) == []
    queue.settle(KEYS[:4], Outcome(tuple(KEYS[:4])), 0.0)
    assert queue.take(0.0, is_urgent=False) == [], "parts of the batch may hang"
    queue.ended(4)
    assert queue.take(0.0, is_urgent=False) == KEYS[6:10]


def test_small_batches_wait_and_become_a_large_one() -> None:
    queue = TierQueue(Limits(4, 100, 100))
    for key in KEYS[:CALLS_IN_FLIGHT_MAX]:
        queue.owe([key])
        assert queue.take(0.0, is_urgent=False) == [key]
    for key in KEYS[CALLS_IN_FLIGHT_MAX : CALLS_IN_FLIGHT_MAX + 3]:
        queue.owe([key])
        assert queue.take(0.0, is_urgent=False) == []
    queue.ended(1)
    assert queue.take(0.0, is_urgent=False) == KEYS[CALLS_IN_FLIGHT_MAX : CALLS_IN_FLIGHT_MAX + 3]


def test_beyond_what_may_wait_the_newest_is_left_out() -> None:
    queue = TierQueue(Limits(4, 16, 3))
    assert queue.owe([KEYS[0]]) == []
    assert queue.owe([*KEYS[:5], KEYS[1]]) == KEYS[3:5], "what waits already takes no room"
    assert queue.take(0.0, is_urgent=False) == KEYS[:3]


def test_a_chunk_that_failed_and_is_owed_again_takes_no_more_room_than_it_had() -> None:
    queue = queue_of(*KEYS[:3], limits=Limits(4, 16, 3))
    assert queue.take(0.0, is_urgent=False) == KEYS[:3]
    queue.settle(KEYS[:3], failed(KEYS[:3], Failure.IO_ERROR), 0.0)
    assert queue.owe([KEYS[3], KEYS[1], KEYS[4]]) == [KEYS[3], KEYS[4]]
    assert queue.waits(KEYS[1])


@pytest.mark.parametrize("why", RETRIED)
def test_a_tier_that_fails_is_tried_with_one_chunk_after_pauses_that_grow(why: Failure) -> None:
    queue = queue_of(*KEYS[:4])
    now_s, pause_s = 0.0, PAUSE_S
    batch = queue.take(now_s, is_urgent=False)
    for turn in range(8):
        settled = queue.settle(batch, failed(batch, why), now_s)
        queue.ended(len(batch))
        assert settled.failed == (dict.fromkeys(KEYS[:4], why) if turn == 0 else {}), "told once"
        assert queue.retry_at_s == now_s + pause_s
        assert queue.take(now_s + pause_s / 2, is_urgent=False) == []
        now_s += pause_s
        batch = queue.take(now_s, is_urgent=False)
        assert len(batch) == 1
        assert queue.take(now_s, is_urgent=False) == [], "one trial at a time"
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
    queue.settle(batch, Outcome(tuple(batch)), now_s)
    queue.ended(1)
    assert len(queue.take(now_s + PAUSE_S, is_urgent=False)) == 3


def test_while_a_tier_that_fails_is_tried_nothing_else_may_move_without_an_event() -> None:
    queue = queue_of(*KEYS[:3])
    batch = queue.take(0.0, is_urgent=False)
    queue.owe(KEYS[3:5])
    queue.is_overdue()
    assert (queue.take(0.0, is_urgent=False), queue.retry_at_s) == ([], None)
    queue.settle(batch, failed(batch, Failure.IO_ERROR), 0.0)
    queue.ended(len(batch))
    assert queue.retry_at_s == PAUSE_S
    assert queue.take(PAUSE_S, is_urgent=False) == [KEYS[3]]
    assert queue.retry_at_s is None


def test_while_enough_is_on_its_way_nothing_that_failed_may_move_without_an_event() -> None:
    queue = queue_of(*KEYS[:4], limits=Limits(2, 2, 100))
    batch = queue.take(0.0, is_urgent=False)
    queue.settle(batch, Outcome((batch[0],), {batch[1]: Failure.IO_ERROR}), 0.0)
    queue.ended(2)
    assert queue.retry_at_s == PAUSE_S
    assert queue.take(PAUSE_S, is_urgent=False) == KEYS[2:4]
    assert queue.retry_at_s is None
    queue.ended(2)
    assert queue.retry_at_s == PAUSE_S


@pytest.mark.parametrize("why", FINAL)
def test_what_another_try_does_not_mend_is_not_tried_again(why: Failure) -> None:
    queue = queue_of(b"a")
    batch = queue.take(0.0, is_urgent=False)
    assert queue.settle(batch, failed(batch, why), 0.0).failed == {b"a": why}
    assert (queue.pending_count, queue.retry_at_s) == (0, None)


def test_a_chunk_that_the_tier_chose_not_to_take_is_declined() -> None:
    queue = queue_of(b"a")
    batch = queue.take(0.0, is_urgent=False)
    settled = queue.settle(batch, failed(batch, Failure.NO_SPACE), 0.0)
    assert (settled.declined, settled.failed, queue.pending_count) == ([b"a"], {}, 0)


def test_one_chunk_that_fails_holds_up_no_other_and_a_key_without_an_answer_has_failed() -> None:
    queue = queue_of(*KEYS[:4])
    batch = queue.take(0.0, is_urgent=False)
    settled = queue.settle(batch, Outcome((KEYS[0],), {KEYS[1]: Failure.IO_ERROR}), 0.0)
    assert settled.failed == dict.fromkeys(KEYS[1:4], Failure.IO_ERROR)
    queue.ended(4)
    queue.owe([KEYS[5]])
    assert queue.take(0.0, is_urgent=False) == [KEYS[5]]
    assert queue.take(PAUSE_S, is_urgent=False) == KEYS[1:4]


def test_whoever_waits_for_everything_to_be_tried_waits_for_no_pause() -> None:
    queue = queue_of(b"a")
    batch = queue.take(0.0, is_urgent=False)
    queue.settle(batch, failed(batch, Failure.IO_ERROR), 0.0)
    queue.ended(1)
    queue.owe([b"b"])
    number = queue.number
    assert not queue.has_offered(number)
    assert queue.take(0.0, is_urgent=True) == [b"b"], "what failed before was tried"
    queue.settle([b"b"], failed([b"b"], Failure.IO_ERROR), 0.0)
    assert queue.has_offered(number)


def test_a_removal_that_is_reported_while_the_chunk_is_on_its_way_wins() -> None:
    queue = queue_of(b"a")
    batch = queue.take(0.0, is_urgent=False)
    queue.left(b"a")
    settled = queue.settle(batch, Outcome((b"a",)), 0.0)
    assert (settled.stored, settled.declined) == ([], [b"a"])


def test_a_forgotten_chunk_can_be_owed_again_and_waits_for_the_old_one() -> None:
    queue = queue_of(b"a")
    old = queue.take(0.0, is_urgent=False)
    queue.forget(b"a")
    assert queue.is_leaving([b"a"])
    assert queue.wanted(old) == []
    queue.owe([b"a"])
    assert queue.take(0.0, is_urgent=False) == []
    assert queue.settle(old, Outcome((b"a",)), 0.0).stored == []
    queue.ended(1)
    assert queue.take(0.0, is_urgent=False) == [b"a"]


class QueueModel(RuleBasedStateMachine):
    """Against a dict of where each key is."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(3, 5, 8)
        self.queue = TierQueue(self.limits)
        self.where: dict[
            bytes, str
        ] = {}  # waiting or moving; keys that are forgotten on their way are in neither
        self.batches: list[list[bytes]] = []
        self.forgotten: list[bytes] = []  # still on their way
        self.now_s = 0.0

    @rule(key=st.sampled_from(KEYS))
    def owe(self, key: bytes) -> None:
        waiting = sum(where == "waiting" for where in self.where.values())
        accepted = not self.queue.owe([key])
        assert accepted == (key in self.where or waiting < self.limits.waiting_chunks) or (
            self.where.get(key) == "waiting"
        )
        if accepted:
            self.where.setdefault(key, "waiting")

    @rule(is_urgent=st.booleans(), passed_s=st.sampled_from([0.0, 0.5, 40.0]))
    def take(self, is_urgent: bool, passed_s: float) -> None:
        self.now_s += passed_s
        batch = self.queue.take(self.now_s, is_urgent=is_urgent)
        assert len(batch) <= self.limits.batch_chunks
        for key in batch:
            assert self.where[key] == "waiting"
            assert key not in self.forgotten
            self.where[key] = "moving"
        if batch:
            self.batches.append(batch)
        assert sum(map(len, self.batches)) <= self.limits.in_flight_chunks

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if not self.batches:
            return
        batch = self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1)))
        why = [data.draw(st.sampled_from([None, Failure.NO_SPACE, *RETRIED, *FINAL])) for _ in batch]
        outcome = Outcome.of(batch, {key: one for key, one in zip(batch, why, strict=True) if one})
        settled = self.queue.settle(batch, outcome, self.now_s)
        self.queue.ended(len(batch))
        for key, one in zip(batch, why, strict=True):
            if key in self.forgotten:
                self.forgotten.remove(key)
                assert key not in (*settled.stored, *settled.declined, *settled.failed)
            elif one in RETRIED:
                self.where[key] = "waiting"
            else:
                del self.where[key]
                assert (key in settled.stored) == (one is None)
                assert (key in settled.declined) == (one is Failure.NO_SPACE)

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: bytes) -> None:
        self.queue.forget(key)
        if self.where.pop(key, None) == "moving":
            self.forgotten.append(key)

    @rule(key=st.sampled_from(KEYS))
    def drop(self, key: bytes) -> None:
        self.queue.drop(key)
        if self.where.get(key) == "waiting":
            del self.where[key]

    @invariant()
    def each_key_is_where_it_should_be(self) -> None:
        self.queue.check()
        assert {key for key in KEYS if key in self.queue} == set(self.where)
        assert self.queue.pending_count == len(self.where)
        assert self.queue.is_leaving(KEYS) == bool(self.forgotten)


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
