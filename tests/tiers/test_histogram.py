"""Durations by ranges."""

from __future__ import annotations

import json

import pytest

from kvtier.tiers.histogram import BOUNDS_S, Durations, Histogram


def of(*durations_s: float) -> Histogram:
    durations = Durations()
    for duration_s in durations_s:
        durations.add(duration_s)
    return durations.histogram()


def test_a_duration_counts_in_the_range_whose_upper_end_it_does_not_exceed() -> None:
    histogram = of(0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, 1000.0)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
    assert sum(histogram.counts) == 4
    assert len(histogram.counts) == len(BOUNDS_S) + 1


def test_what_came_since_has_the_counts_and_the_sum_of_what_was_added() -> None:
    earlier = of(0.03, 2.0)
    added = of(0.03, 2.0, 0.03, 0.04, 60.0).since(earlier)
    assert added == pytest.approx([0.035, 0.035, 60.0])
    assert earlier.since(earlier) == []


def test_a_histogram_is_json() -> None:
    document = json.loads(json.dumps(of(0.5, 0.25).as_dict()))
    assert sum(document["counts"]) == 2
    assert document["sum_s"] == pytest.approx(0.75)
