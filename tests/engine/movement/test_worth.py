"""Load or recompute: the rule, on rates and a clock of the test's own."""

import pytest
from chain_rig import Clock

from kvtier.engine.movement.prompts import Prompt
from kvtier.engine.movement.rates import MEASURED_BYTES, GivenPrefill, MeasuredPrefill, Prefill, TierRate
from kvtier.engine.movement.worth import (
    EVERYTHING,
    PROBE_BYTES,
    PROBE_EVERY_S,
    Advisor,
    Computing,
    worth,
)

MIB = 1 << 20
CHUNK_BYTES = MIB
CHUNK_TOKENS = 16
PREFILL = 1600.0  # tokens in a second: 100 chunks of 1 MiB each


class Rig:
    """An advisor over one tier that loads so many MiB a second, measured just now."""

    def __init__(self, mib_per_s: float, prefill: Prefill | None = None) -> None:
        self.clock = Clock()
        self.rate = TierRate()
        self.measured(mib_per_s, size_bytes=1024 * MIB)
        self.advisor = Advisor(
            {"nvme": self.rate},
            chunk_bytes=CHUNK_BYTES,
            computing=Computing(CHUNK_TOKENS, prefill or GivenPrefill(PREFILL)),
            clock=self.clock,
        )

    def measured(self, mib_per_s: float, size_bytes: int) -> None:
        self.rate.began(self.clock.now_s - size_bytes / MIB / mib_per_s)
        self.rate.ended(self.clock.now_s, size_bytes)

    def loaded(self, chunks: int, *, run: int | None = None) -> int:
        """How many of a new prompt's chunks below are loaded."""
        prompt = Prompt(0)
        return [self.advisor.lets(prompt, "nvme", run) for _ in range(chunks)].count(True)


def test_what_a_run_takes_either_way() -> None:
    estimate = worth(10, chunk_bytes=100, chunk_tokens=16, bytes_per_s=50, tokens_per_s=8, queued_bytes=500)
    assert estimate == (30.0, 20.0)
    assert not estimate.is_loaded


@pytest.mark.parametrize("run", [None, 1, 1000])
@pytest.mark.parametrize(("mib_per_s", "expected"), [(110, EVERYTHING), (90, 0)])
def test_a_run_is_loaded_from_a_tier_that_is_faster_than_computing(
    mib_per_s: float, expected: float, run: int | None
) -> None:
    assert Rig(mib_per_s).advisor.advised("nvme", run) == expected


def test_what_waits_before_a_run_counts_where_its_length_is_known() -> None:
    rig = Rig(200)
    rig.rate.queued_bytes = 50 * MIB
    assert rig.loaded(40, run=40) == 0, "0.45 s to load, 0.4 s to compute"
    assert rig.loaded(60, run=60) == 60, "0.55 s to load, 0.6 s to compute"
    assert rig.loaded(3) == 3, "the queue of a moment says nothing of a run that may be long"


@pytest.mark.parametrize(("mib_per_s", "expected"), [(50, 10), (100, 15), (200, 20), (400, 24)])
def test_of_runs_that_come_together_as_many_are_loaded_as_are_sooner_there(
    mib_per_s: float, expected: int
) -> None:
    rig, loaded = Rig(mib_per_s), 0
    for number in range(30):
        if rig.advisor.lets(Prompt(number), "nvme", 100):
            rig.rate.queued_bytes += 100 * MIB
            loaded += 1
        else:
            rig.advisor.computes(100)
    assert loaded == pytest.approx(expected, abs=1)


def test_what_is_computed_is_waited_for_as_long_as_that_takes() -> None:
    rig = Rig(90)
    assert rig.loaded(100, run=100) == 0
    rig.advisor.computes(100)
    assert rig.loaded(100, run=100) == 100
    assert rig.loaded(1) == 0, "the queue of a moment says nothing of a run that may be long"
    rig.clock.now_s += 1.0
    assert rig.loaded(100, run=100) == 0


def test_the_answer_is_for_all_of_the_run() -> None:
    rig, prompt = Rig(200), Prompt(0)
    assert rig.advisor.lets(prompt, "nvme", 40)
    rig.rate.queued_bytes = 1000 * MIB
    assert all(rig.advisor.lets(prompt, "nvme", 39) for _ in range(39))
    late = Prompt(1)
    assert not rig.advisor.lets(late, "nvme", 40)
    rig.rate.queued_bytes = 0
    assert not rig.advisor.lets(late, "nvme", 40)


def test_each_tier_is_decided_upon_and_a_no_is_for_all() -> None:
    rig, prompt = Rig(200), Prompt(0)
    far = rig.advisor.rates["far"] = TierRate()  # type: ignore[index]
    far.began(-1000.0)
    far.ended(0.0, 1000 * MIB)
    assert rig.advisor.lets(prompt, "nvme", 100)
    assert not rig.advisor.is_decided(prompt)
    assert not rig.advisor.lets(prompt, "far", 90), "a second a chunk, which is computed in a hundredth"
    assert rig.advisor.is_decided(prompt)
    assert not rig.advisor.lets(prompt, "nvme", 50), "what is before it is not loaded"


def test_a_prompt_that_is_preempted_and_looked_for_again_is_decided_upon_anew() -> None:
    rig, prompt = Rig(200), Prompt(0)
    rig.rate.queued_bytes = 1000 * MIB
    assert not rig.advisor.lets(prompt, "nvme", 40)
    rig.rate.queued_bytes = 0
    assert not rig.advisor.lets(prompt, "nvme", 40)
    prompt.starts()
    assert rig.advisor.lets(prompt, "nvme", 40)


def test_nothing_is_decided_on_a_rate_that_is_not_known() -> None:
    rig = Rig(1)
    assert rig.loaded(5) == 0
    rig.advisor.rates = {"nvme": TierRate()}
    assert rig.loaded(5) == 5
    assert Rig(1, MeasuredPrefill()).loaded(5) == 5
    rig = Rig(1)
    rig.advisor.computing = None
    assert rig.loaded(5) == 5
    assert rig.advisor.rates_per_s("pinned") == {"nvme": {"load_bytes_per_s": MIB}}


def test_the_rates_are_told() -> None:
    assert Rig(8).advisor.rates_per_s("pinned") == {
        "nvme": {"load_bytes_per_s": 8 * MIB},
        "pinned": {"prefill_tokens_per_s": int(PREFILL)},
    }


def test_a_tier_that_is_read_no_more_is_tried_now_and_then_and_not_more() -> None:
    rig = Rig(50)
    probe_chunks = PROBE_BYTES // CHUNK_BYTES
    loaded = []
    for _ in range(int(4 * PROBE_EVERY_S)):
        rig.clock.now_s += 1.0
        loaded.append(rig.loaded(1000, run=1000))
    assert sorted(set(loaded)) == [0, probe_chunks]
    assert loaded.count(probe_chunks) == 4


def test_a_try_is_not_spent_on_a_run_that_is_too_short_to_be_measured() -> None:
    rig, short = Rig(50), MEASURED_BYTES // CHUNK_BYTES - 1
    rig.clock.now_s += PROBE_EVERY_S
    assert rig.loaded(short, run=short) == short
    assert rig.loaded(1000, run=1000) == PROBE_BYTES // CHUNK_BYTES
    assert rig.loaded(short, run=short) == 0


def test_a_tier_that_has_become_faster_is_soon_used_again() -> None:
    rig = Rig(10)
    probes = 0
    while rig.loaded(1000) < 1000:
        rig.clock.now_s += PROBE_EVERY_S
        assert rig.loaded(1000) == PROBE_BYTES // CHUNK_BYTES
        rig.measured(1000, size_bytes=PROBE_BYTES)
        probes += 1
        assert probes < 5
    assert probes >= 1


def test_a_tier_that_has_become_slower_is_soon_left_alone() -> None:
    rig = Rig(1000)
    loads = 0
    while rig.loaded(100) == 100:
        rig.measured(10, size_bytes=100 * MIB)
        loads += 1
        assert loads < 5


def test_no_second_probe_while_the_first_is_under_way() -> None:
    rig = Rig(50)
    rig.clock.now_s = 10 * PROBE_EVERY_S
    rig.rate.queued_bytes = MIB
    assert rig.loaded(10) == 0
