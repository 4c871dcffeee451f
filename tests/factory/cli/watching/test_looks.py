"""What looks at boards say."""

from __future__ import annotations

import pytest
from boards import board, tier

from kvtier.factory.cli.watching.looks import Looks


def test_rates_are_of_two_boards_by_their_own_clocks() -> None:
    looks = Looks()
    looks.add([board(100.0, pinned=tier(), nvme=tier(hits=1, misses=1, loaded=10))], 100.0)
    (engine,) = looks.add([board(104.0, pinned=tier(), nvme=tier(hits=4, misses=2, loaded=50))], 130.0)
    _, nvme = engine.tiers
    assert (nvme.load_bytes_per_s, nvme.hit_percent_now) == (10.0, 75.0)
    assert nvme.hit_percent == pytest.approx(100 * 4 / 6)
    assert (nvme.cap_bytes, nvme.bound_by, nvme.breaker, nvme.queue_chunks) == (500, "free space", "open", 3)
    assert (engine.saved_tokens, engine.saved_s, engine.stale) == (64, None, True)


def test_a_board_that_was_not_written_again_keeps_the_rates() -> None:
    looks = Looks()
    looks.add([board(100.0, nvme=tier(loaded=0))], 100.0)
    first = looks.add([board(101.0, nvme=tier(loaded=5))], 101.0)
    again = looks.add([board(101.0, nvme=tier(loaded=5))], 101.5)
    assert first == again
    assert again[0].tiers[0].load_bytes_per_s == 5.0


def test_one_look_has_no_rates_and_no_lookups_no_percentage() -> None:
    (engine,) = Looks().add([board(nvme=tier())], 100.0)
    (nvme,) = engine.tiers
    assert (nvme.load_bytes_per_s, nvme.hit_percent, nvme.hit_percent_now) == (None, None, None)


@pytest.mark.parametrize("then_unix_s", [100.0 - 3600, 100.0 + 1])
def test_a_clock_that_was_set_and_a_counter_that_fell_give_no_rates(then_unix_s: float) -> None:
    looks = Looks()
    looks.add([board(100.0, nvme=tier(hits=5, loaded=9))], 100.0)
    (engine,) = looks.add([board(then_unix_s, nvme=tier(hits=1, loaded=1))], 100.0)
    assert (engine.tiers[0].load_bytes_per_s, engine.tiers[0].hit_percent_now) == (None, None)


def test_a_process_that_started_anew_is_compared_with_nothing() -> None:
    looks = Looks()
    looks.add([board(100.0, nvme=tier(loaded=1)), board(100.0, pid=8, nvme=tier())], 100.0)
    anew, other = looks.add(
        [board(101.0, started_unix_s=100.5, nvme=tier(loaded=9)), board(101.0, pid=8, nvme=tier(loaded=2))],
        101.0,
    )
    assert anew.tiers[0].load_bytes_per_s is None
    assert other.tiers[0].load_bytes_per_s == 2.0
