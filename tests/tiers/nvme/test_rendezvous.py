from __future__ import annotations

from collections import Counter

import pytest
from nvme_rig import keys_of

from kvtier.tiers.nvme.rendezvous import Ranking

KEYS = keys_of(0, 20_000)


def first(ranking: Ranking, names: list[str]) -> dict[bytes, str]:
    return {key: names[ranking.of(key)[0]] for key in KEYS}


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, 1], [1, 2, 4], [3, 1, 1, 1, 1]])
def test_each_drive_gets_its_share(weights: list[float]) -> None:
    ranking = Ranking([f"/mnt/nvme{i}/kvtier" for i in range(len(weights))], weights)
    counts = Counter(ranking.of(key)[0] for key in KEYS)
    for drive, weight in enumerate(weights):
        assert counts[drive] / len(KEYS) == pytest.approx(weight / sum(weights), rel=0.15)


def test_a_place_follows_from_nothing_but_the_key_and_the_names() -> None:
    names = ["/a", "/b", "/c"]
    there = first(Ranking(names, [1, 1, 1]), names)
    other = ["/c", "/a", "/b"]
    assert first(Ranking(other, [5, 5, 5]), other) == there
    expected = ["/b", "/c", "/a", "/b", "/a", "/c"]
    assert [there[key] for key in KEYS[:6]] == expected, "in every release: what is stored is found again"


def test_a_drive_more_takes_from_all_and_moves_nothing_between_the_others() -> None:
    names = ["/a", "/b", "/c"]
    before, after = (
        first(Ranking(names, [1] * 3), names),
        first(Ranking([*names, "/d"], [1] * 4), [*names, "/d"]),
    )
    moved = {after[key] for key in KEYS if after[key] != before[key]}
    assert moved == {"/d"}


def test_a_drive_less_gives_its_keys_to_all_others() -> None:
    ranking = Ranking(["/a", "/b", "/c"], [1] * 3)
    seconds = Counter(ranking.of(key)[1] for key in KEYS if ranking.of(key)[0] == 0)
    assert seconds[1] == pytest.approx(seconds[2], rel=0.2)
    assert all(sorted(ranking.of(key)) == [0, 1, 2] for key in KEYS[:100])
