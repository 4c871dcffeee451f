"""History is bounded, and thinned with age."""

from __future__ import annotations

from itertools import pairwise

from kvtier.engine.chain import ChainStats
from kvtier.engine.live.history import COARSE_POINTS, COARSE_S, FINE_POINTS, FINE_S, History, points
from kvtier.tiers.base import TierStats

DAY_S = 86_400


def stats(hits: int) -> ChainStats:
    tiers = {name: TierStats(1, 2, 3, {"hits": hits, "loaded_bytes": 1 << 50}) for name in ("pinned", "nvme")}
    return ChainStats(tiers, {"nvme": 0}, 0)


def test_two_days_take_no_more_than_a_megabyte_and_the_last_minutes_are_fine() -> None:
    history = History()
    for second in range(0, 2 * DAY_S, 5):
        history.add(float(second), stats(second))
    data = history.encoded()
    found = points(data)
    assert len(data) < 1 << 20
    assert len(found) == FINE_POINTS + COARSE_POINTS
    times = [point["unix_s"] for point in found]
    assert times == sorted(times)
    assert times[-1] - times[-FINE_POINTS] == FINE_S * (FINE_POINTS - 1)
    assert {later - earlier for earlier, later in pairwise(times[:COARSE_POINTS])} == {COARSE_S}
    assert found[-1]["tiers"]["nvme"]["hits"] == times[-1]


def test_a_clock_that_is_set_back_stops_no_history() -> None:
    history = History()
    assert history.add(1000.0, stats(1))
    assert not history.add(1001.0, stats(2))
    assert history.add(500.0, stats(3))


def test_what_is_no_point_is_left_out() -> None:
    assert points(b'{"unix_s":1,"tiers":{}}\nnot json\n[1]\n{"unix_s":2,"tie') == [{"unix_s": 1, "tiers": {}}]
