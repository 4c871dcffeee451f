"""Replays of small traces, figure by figure, and of a public one (see tests/data/README.md)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kvtier.engine.replay.replay import (
    ReplayFigures,
    TierFigures,
    distinct_count,
    replay,
    unlimited_hit_percent,
)
from kvtier.engine.replay.tiers import LogWithoutBytes, SlotsWithoutBytes
from kvtier.engine.replay.trace import Requests, read_trace
from kvtier.tiers.pinned.eviction import POLICIES
from kvtier.tiers.pinned.slots import Slot

DATA = Path(__file__).parents[2] / "data"
TOLERANCE_PERCENT = 0.3  # in points: batching and the order of one request's chunks move a ratio by as much
ROUNDING_PERCENT = 0.005  # our own figures, of this order, to two digits
CHUNK_BYTES = 1 << 16
LOG_BYTES = 1 << 30  # far more than any small trace here stores


def slots(count: int, policy: str = "lru") -> SlotsWithoutBytes:
    return SlotsWithoutBytes(count, slot_bytes=CHUNK_BYTES, make_policy=POLICIES[policy])


def log(capacity_bytes: int = LOG_BYTES, name: str = "nvme", amplification: float = 1.0) -> LogWithoutBytes:
    return LogWithoutBytes(
        name, capacity_bytes=capacity_bytes, chunk_bytes=CHUNK_BYTES, write_amplification=amplification
    )


def run(
    requests: Requests, pinned: SlotsWithoutBytes, *lower: LogWithoutBytes, step_chunks: int | None = None
) -> ReplayFigures:
    figures = replay(requests, pinned, lower, lambda served_count: None, step_chunks=step_chunks)
    pinned.table.check()
    assert not pinned.table.pinned_count, "a replay returns every pin"
    for tier in lower:
        tier.check()
    return figures


def prompt(*numbers: int) -> list[bytes]:
    return [b"%08d" % number for number in numbers]


@pytest.fixture(scope="module")
def beginning() -> Requests:
    return read_trace(DATA / "conversation_trace_1500.jsonl.gz").requests


@pytest.fixture(scope="module")
def whole() -> Requests:
    return read_trace(DATA / "conversation_trace.jsonl.gz").requests


def check_one_tier(figures: ReplayFigures, capacity_chunks: int) -> None:
    (pinned,) = figures.tiers
    assert pinned.hits_chunks == figures.hits_chunks
    stored_chunks = pinned.written_bytes // CHUNK_BYTES
    assert stored_chunks - pinned.evicted_chunks == capacity_chunks, "what came and did not leave is there"
    assert pinned.dropped_chunks == 0


@pytest.mark.parametrize("step_chunks", [None, 4])
@pytest.mark.parametrize(
    ("policy", "capacity_chunks", "expected_percent"),
    [
        ("lru", 10_000, 19.95),
        ("arc", 2_000, 5.52),
        ("s3fifo", 2_000, 6.76),
        ("reuse", 2_000, 7.99),
    ],
)
def test_the_beginning_hits_as_often_as_the_policy_alone_does(
    beginning: Requests, policy: str, capacity_chunks: int, expected_percent: float, step_chunks: int | None
) -> None:
    figures = run(beginning, slots(capacity_chunks, policy), step_chunks=step_chunks)
    tolerance_percent = TOLERANCE_PERCENT if step_chunks else ROUNDING_PERCENT
    assert figures.hit_rate_percent == pytest.approx(expected_percent, abs=tolerance_percent)
    check_one_tier(figures, capacity_chunks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "capacity_chunks", "expected_percent"),
    [
        ("lru", 10_000, 21.2),
        ("arc", 10_000, 22.5),
        ("s3fifo", 10_000, 20.2),
        ("reuse", 5_000, 16.9),
        ("reuse", 10_000, 22.6),
        ("reuse", 20_000, 29.9),
    ],
)
def test_the_whole_trace_in_steps_hits_as_often_as_is_known_of_whole_prompts(
    whole: Requests, policy: str, capacity_chunks: int, expected_percent: float
) -> None:
    figures = run(whole, slots(capacity_chunks, policy), step_chunks=4)
    assert figures.hit_rate_percent == pytest.approx(expected_percent, abs=TOLERANCE_PERCENT)
    check_one_tier(figures, capacity_chunks)


def check_against_no_limit(requests: Requests, expected_percent: float) -> None:
    unlimited_percent = unlimited_hit_percent(requests)
    assert unlimited_percent == pytest.approx(expected_percent, abs=0.05)
    figures = run(requests, slots(1_000), log(400_000 * CHUNK_BYTES))
    assert figures.hit_rate_percent == pytest.approx(unlimited_percent, abs=0.001)
    assert figures.tiers[1].written_bytes == distinct_count(requests) * CHUNK_BYTES


def test_no_tiers_do_better_than_a_cache_without_a_limit(beginning: Requests) -> None:
    check_against_no_limit(beginning, 26.5)


@pytest.mark.slow
def test_no_tiers_do_better_on_the_whole_trace_either(whole: Requests) -> None:
    check_against_no_limit(whole, 36.6)


def test_a_replay_gives_the_same_figures_twice(beginning: Requests) -> None:
    first, second = (
        run(beginning, slots(500, "arc"), log(8_000 * CHUNK_BYTES, amplification=1.3)) for _ in "ab"
    )
    assert first == second
    assert first.tiers[1].evicted_chunks > 0


def test_each_figure_of_a_pinned_tier() -> None:
    figures = run([prompt(1, 2), prompt(1, 3), prompt(1, 2)], slots(2))
    pinned = TierFigures(
        tier="pinned",
        capacity_bytes=2 * CHUNK_BYTES,
        hits_chunks=2,
        hit_rate_percent=33.333,
        promoted_chunks=0,
        evicted_chunks=2,
        written_bytes=4 * CHUNK_BYTES,
        dropped_chunks=0,
    )
    assert figures == ReplayFigures(3, 6, 2, 33.333, (pinned,), None)


def test_what_lies_only_below_is_promoted_and_counts_for_the_tier_that_had_it() -> None:
    figures = run([prompt(1, 2), prompt(3, 4), prompt(1, 2)], slots(2), log())
    pinned, nvme = figures.tiers
    assert (pinned.hits_chunks, nvme.hits_chunks) == (0, 2)
    assert (pinned.promoted_chunks, nvme.promoted_chunks) == (0, 2)
    assert pinned.written_bytes == 6 * CHUNK_BYTES, "four were stored, two promoted"
    assert nvme.written_bytes == 4 * CHUNK_BYTES, "what is there is not written again"
    assert pinned.evicted_chunks == 4


def test_what_lies_behind_a_miss_is_no_hit() -> None:
    """A server cannot use a chunk without all those before it."""
    figures = run([prompt(1, 2, 3), prompt(1, 9, 2, 3)], slots(8))
    assert figures.hits_chunks == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("step_chunks", [None, 1, 3])
def test_a_prompt_larger_than_the_arena_keeps_its_head_and_drops_the_rest(
    policy: str, step_chunks: int | None
) -> None:
    requests = [prompt(*range(10)), prompt(*range(10))]
    figures = run(requests, slots(4, policy), log(), step_chunks=step_chunks)
    pinned, nvme = figures.tiers
    assert (pinned.hits_chunks, nvme.hits_chunks) == (4, 0)
    assert (pinned.dropped_chunks, nvme.dropped_chunks) == (12, 0), "of each request, all behind the head"


def test_a_tier_that_holds_nothing_is_told_apart_from_one_that_does() -> None:
    upper, lower = log(name="upper"), log(name="lower")
    figures = run([prompt(1, 2), prompt(3, 4), prompt(1, 2)], slots(2), upper, lower)
    assert [tier.tier for tier in figures.tiers] == ["pinned", "upper", "lower"]
    assert [tier.hits_chunks for tier in figures.tiers] == [0, 2, 0], "the nearest tier supplies"
    assert figures.tiers[1].written_bytes == figures.tiers[2].written_bytes == 4 * CHUNK_BYTES


def test_progress_is_told_on_the_callers_thread_and_adds_up() -> None:
    told: list[tuple[int, threading.Thread]] = []
    replay(
        [prompt(i) for i in range(150)],
        slots(4),
        [],
        lambda served_count: told.append((served_count, threading.current_thread())),
        step_chunks=None,
    )
    assert sum(count for count, _ in told) == 150
    assert {thread for _, thread in told} == {threading.current_thread()}


def test_an_interrupted_replay_leaves_no_thread() -> None:
    def interrupt(served_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay([prompt(i) for i in range(150)], slots(4), [log()], interrupt, step_chunks=None)
    assert not [thread for thread in threading.enumerate() if thread.name == "kvtier-replay"]


def test_slots_without_bytes_have_empty_buffers() -> None:
    assert len(slots(1).buffer(Slot(b"key", 0, prompt=0, position=0))) == 0
