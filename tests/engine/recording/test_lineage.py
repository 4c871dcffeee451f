from __future__ import annotations

from kvtier.engine.recording.lineage import Lineage


def test_a_new_prompt_is_whole() -> None:
    assert Lineage().whole([1, 2, 3], 0) == [1, 2, 3]


def test_a_prompt_gets_its_head_back_from_an_earlier_one() -> None:
    lineage = Lineage()
    lineage.whole([1, 2, 3, 4], 0)
    assert lineage.whole([3, 5], 2) == [1, 2, 3, 5]
    assert lineage.whole([5, 6], 0) == [1, 2, 3, 5, 6], "also where nobody has told the position"
    assert lineage.whole([6], 4) == [1, 2, 3, 5, 6]


def test_a_head_that_was_never_seen_is_not_made_up() -> None:
    lineage = Lineage()
    assert lineage.whole([3, 4], 2) is None
    assert lineage.whole([3, 4], 0) == [3, 4], "nothing was learnt from it"


def test_a_head_of_another_length_is_another_prompt() -> None:
    lineage = Lineage()
    lineage.whole([1, 2, 3], 0)
    assert lineage.whole([3, 4], 1) is None


def test_chunks_out_of_order_are_noticed() -> None:
    lineage = Lineage()
    lineage.whole([1, 2, 3], 0)
    # As a server names them that looks behind its device's chunks first, and then stores from the head.
    assert lineage.whole([4, 1, 2, 3], 0) is None
    assert lineage.whole([1, 2, 3, 4], 0) == [1, 2, 3, 4]


def test_it_is_bounded_and_says_so_where_it_has_forgotten() -> None:
    lineage = Lineage(links_max=6)
    lineage.whole([1, 2, 3], 0)
    lineage.whole([11, 12, 13, 14], 0)
    assert lineage.whole([3, 4], 2) is None, "its head was the least recently seen"
    assert lineage.whole([14, 15], 3) == [11, 12, 13, 14, 15]
