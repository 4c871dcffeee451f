"""Rates of loads and of computing, on a clock of the test's own."""

import pytest

from kvtier.engine.movement.rates import (
    KNOWN_FROM_BYTES,
    MEASURED_S,
    RECENT_BYTES,
    RUN_STEPS_MAX,
    RUNS_MIN,
    STEP_TOKENS_MIN,
    MeasuredPrefill,
    TierRate,
)

MIB = 1 << 20


def loaded(rate: TierRate, size_bytes: int, took_s: float, began_s: float = 0.0) -> None:
    rate.began(began_s)
    rate.ended(began_s + took_s, size_bytes)


def test_a_rate_is_unknown_until_enough_was_loaded() -> None:
    rate = TierRate()
    loaded(rate, KNOWN_FROM_BYTES - 1, 0.5)
    assert rate.bytes_per_s is None
    loaded(rate, KNOWN_FROM_BYTES, 0.5)
    assert rate.bytes_per_s == pytest.approx(2 * KNOWN_FROM_BYTES, rel=0.05)


def test_loads_side_by_side_are_one_time() -> None:
    rate = TierRate()
    rate.began(0.0)
    rate.began(0.0)
    rate.ended(1.0, 32 * MIB)
    rate.began(1.5)
    rate.ended(2.0, 32 * MIB)
    rate.ended(2.0, 32 * MIB)
    loaded(rate, 32 * MIB, 2.0, began_s=100.0)  # the pause before it is nobody's
    assert rate.bytes_per_s == pytest.approx(32 * MIB, rel=0.1)


def test_a_rate_follows_the_load_on_the_drive() -> None:
    rate = TierRate()
    loaded(rate, RECENT_BYTES, 0.2)
    for _ in range(4 * RECENT_BYTES // (64 * MIB)):
        loaded(rate, 64 * MIB, 1.0)
    assert rate.bytes_per_s == pytest.approx(64 * MIB, rel=0.05)


def test_loads_that_bring_nothing_take_time_all_the_same() -> None:
    rate = TierRate()
    loaded(rate, 64 * MIB, 1.0)
    loaded(rate, 0, 1.0)
    assert rate.bytes_per_s == 32 * MIB


def test_short_loads_whose_time_is_that_of_a_call_lower_no_rate() -> None:
    rate = TierRate()
    loaded(rate, 64 * MIB, 0.064)
    for second in range(1000):
        loaded(rate, MIB, 0.002, began_s=1.0 + second)
    assert rate.bytes_per_s == pytest.approx(1000 * MIB)


def test_where_only_short_loads_come_they_make_the_rate() -> None:
    rate = TierRate()
    for second in range(1000):
        loaded(rate, MIB, 0.2 if second % 2 else 0.002, began_s=second)
    assert rate.bytes_per_s == pytest.approx(2 * MIB / 0.202, rel=0.01)


def test_short_loads_that_take_long_or_come_side_by_side_are_measured() -> None:
    slow = TierRate()
    for second in range(40):
        loaded(slow, MIB, 2 * MEASURED_S, began_s=second)
    assert slow.bytes_per_s == pytest.approx(MIB / MEASURED_S / 2)
    busy = TierRate()
    busy.began(0.0)
    for step in range(1, 65):
        busy.began(0.001 * step)
        busy.ended(0.001 * step, MIB)
    assert busy.bytes_per_s == pytest.approx(1000 * MIB)


def test_a_short_load_that_is_faster_than_was_known_is_believed() -> None:
    rate = TierRate()
    loaded(rate, 64 * MIB, 6.4)
    for second in range(10, 74):
        loaded(rate, MIB, 0.001, began_s=second)
    assert rate.bytes_per_s == pytest.approx(20 * MIB, rel=0.1)
    assert rate.measured_s == pytest.approx(6.4), "a long one says more"


def test_a_rate_in_doubt_is_known_and_soon_another() -> None:
    rate = TierRate()
    for _ in range(64):
        loaded(rate, 64 * MIB, 10.0)
    before = rate.bytes_per_s
    rate.doubt()
    assert rate.bytes_per_s == before
    loaded(rate, 64 * MIB, 0.1)
    assert rate.bytes_per_s is not None
    assert before is not None
    assert rate.bytes_per_s > 2 * before


class Steps:
    """A server's steps: each plans tokens and takes a time, or runs while the next one is planned."""

    def __init__(self, *, is_ahead: bool) -> None:
        self.prefill = MeasuredPrefill()
        self.now_s = 0.0
        self._is_ahead = is_ahead
        self._running: float | None = None

    def serve(self, *steps: tuple[int, float]) -> None:
        """Plan and run steps of (tokens, seconds); then the server is idle for a minute."""
        for tokens, took_s in steps:
            self.prefill.active(self.now_s)
            self.prefill.planned(tokens)
            if not self._is_ahead:
                self._end(took_s)
            elif self._running is not None:
                self._end(self._running)
            self._running = took_s
        if self._is_ahead:
            assert self._running is not None
            self._end(self._running)
            self._running = None
        self.now_s += 60.0

    def _end(self, took_s: float) -> None:
        self.now_s += took_s
        self.prefill.step_ended(self.now_s)


DECODING = (0, 0.01)


@pytest.mark.parametrize("is_ahead", [False, True], ids=["step by step", "planned ahead"])
class TestMeasuredPrefill:
    def test_prompts_of_one_step_each_amid_decoding(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        for _ in range(RUNS_MIN):
            steps.serve(DECODING, DECODING, (2000, 1.0), DECODING, DECODING)
        assert steps.prefill.tokens_per_s == pytest.approx(2000, rel=0.05)

    def test_prompts_of_several_steps(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        for _ in range(RUNS_MIN):
            steps.serve(*[(2000, 1.0)] * 5, DECODING, DECODING)
        assert steps.prefill.tokens_per_s == pytest.approx(2000, rel=0.05)

    def test_a_server_that_computes_without_a_pause(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        steps.serve(*[(2000, 1.0)] * (RUN_STEPS_MAX + 2) * (RUNS_MIN + 1), DECODING, DECODING)
        assert steps.prefill.tokens_per_s == pytest.approx(2000, rel=0.15)

    def test_a_first_step_that_compiles_does_not_move_the_rate(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        steps.serve((2000, 90.0), DECODING, DECODING)
        for _ in range(RUNS_MIN):
            steps.serve((2000, 1.0), DECODING, DECODING)
        assert steps.prefill.tokens_per_s == pytest.approx(2000, rel=0.05)

    def test_steps_that_compute_little_say_nothing(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        for _ in range(100):
            steps.serve(DECODING, (STEP_TOKENS_MIN - 1, 0.01), DECODING)
        assert steps.prefill.tokens_per_s is None

    def test_what_is_decoded_beside_it_makes_computing_slower(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        for _ in range(RUNS_MIN):
            steps.serve(*[(2000, 2.0)] * 5, DECODING, DECODING)
        assert steps.prefill.tokens_per_s == pytest.approx(1000, rel=0.05)

    def test_two_runs_are_not_enough(self, is_ahead: bool) -> None:
        steps = Steps(is_ahead=is_ahead)
        for _ in range(RUNS_MIN - 1):
            steps.serve((2000, 1.0), DECODING, DECODING)
        assert steps.prefill.tokens_per_s is None


def test_a_run_that_ends_idle_does_not_count_the_pause() -> None:
    steps = Steps(is_ahead=False)
    for _ in range((RUN_STEPS_MAX + 2) * RUNS_MIN):
        steps.serve((2000, 1.0))  # one token was asked for: no step follows
    assert steps.prefill.tokens_per_s == pytest.approx(2000, rel=0.15)
