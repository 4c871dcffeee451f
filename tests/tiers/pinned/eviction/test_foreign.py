"""A policy of another package that raises, lies or is lazy: lru takes over, and the tier goes on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from eviction_rig import anything, chunks, extend, insert, touch

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.pinned.eviction import ArcPolicy, GuardedPolicy, LruPolicy
from kvtier.tiers.pinned.eviction.testing import EvictionContract
from kvtier.tiers.pinned.slots import SlotTable


class TestGuarded(EvictionContract):
    make_policy = partial(GuardedPolicy, make=ArcPolicy)


def answering(answer: Callable[[list[bytes]], Any]) -> type[LruPolicy]:
    """A policy that answers `evict` with what `answer` makes of the right victims."""

    class Liar(LruPolicy):
        def evict(self, *args: Any, **kwargs: Any) -> Any:
            return answer(super().evict(*args, **kwargs))

    return Liar


def endless(victims: list[bytes]) -> Iterator[bytes]:
    return (b"%d" % number for number in itertools.count())


def failing(victims: list[bytes]) -> Iterable[bytes]:
    yield from victims[:1]
    raise OSError("no more")


WRONG = {
    "twice": lambda victims: [*victims[:1], *victims[:1]],
    "unknown": lambda victims: [*victims[:-1], b"never inserted"],
    "pinned": lambda victims: [b"b0", *victims[1:]],
    "spared": lambda victims: [b"c0", *victims[1:]],
    "too many": lambda victims: [*victims, b"a0"],
    "short": lambda victims: victims[:-1],
    "none": lambda victims: None,
    "no keys": lambda victims: [[], {}],
    "endless": endless,
    "failing": failing,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_where_it_names_what_may_not_leave_lru_chooses_from_then_on(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy, lru = GuardedPolicy(10, answering(WRONG[wrong])), LruPolicy(10)
    for twin in (policy, lru):
        extend(twin, 0, chunks("a", 4))
        extend(twin, 1, chunks("b", 2))
        extend(twin, 2, chunks("c", 2))
        for count, spare in ((2, 2), (3, None)):
            twin.evict(count, lambda key: key != b"b0", spare=spare)
        twin.check()
    assert [key for key in chunks("a", 4) + chunks("b", 2) + chunks("c", 2) if key in policy] == [
        key for key in chunks("a", 4) + chunks("b", 2) + chunks("c", 2) if key in lru
    ]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Liar" in record.message
    assert "lru takes its place" in record.message


@pytest.mark.parametrize("method", ["arrive", "insert", "touch", "remove", "evict"])
def test_where_it_raises_lru_knows_all_that_it_knew(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    policy = GuardedPolicy(4, ArcPolicy)
    insert(policy, chunks("a", 2))
    insert(policy, chunks("b", 2))
    monkeypatch.setattr(ArcPolicy, method, broken)
    touch(policy, chunks("a", 2))
    policy.remove(b"b1")
    insert(policy, [b"c"])
    assert policy.evict(4, anything) == [b"b0", b"a1", b"a0", b"c"]
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_where_it_cannot_be_made_the_tier_does_not_start() -> None:
    def broken(capacity_chunks: int) -> LruPolicy:
        raise ZeroDivisionError("no ghosts")

    with pytest.raises(TierUnavailable, match=r"broken failed: ZeroDivisionError\('no ghosts'\)"):
        GuardedPolicy(4, broken)


def test_a_table_goes_on_when_its_policy_fails() -> None:
    slots = SlotTable(2, GuardedPolicy(2, answering(WRONG["unknown"])))
    for prompt in range(5):
        taken, _ = slots.reserve(prompt, [b"%d" % prompt], [0])
        slots.commit(taken)
        slots.check()
    assert [slots.is_ready(b"%d" % prompt) for prompt in range(5)] == [False, False, False, True, True]
