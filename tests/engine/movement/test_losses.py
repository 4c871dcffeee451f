"""Who is told of what was lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from kvtier.engine.movement import losses as losses_module
from kvtier.engine.movement.losses import Caller, Loss, Losses, calling
from kvtier.tiers.base import Failure


def of_a_thread() -> Caller:
    found: list[Caller] = []
    thread = threading.Thread(target=lambda: found.append(calling()))
    thread.start()
    thread.join()
    return found[0]


async def named() -> Caller:
    return calling()


def test_a_thread_is_one_caller_however_often_it_calls() -> None:
    assert calling() == calling()
    assert calling() != of_a_thread()


async def test_each_task_is_a_caller_of_its_own() -> None:
    one, other = await asyncio.gather(named(), named())
    assert len({one, other, calling()}) == 3
    assert calling() == await named(), "what a task awaits is the same task"


def test_a_caller_that_is_gone_is_equal_to_no_other() -> None:
    gone = of_a_thread()
    gc.collect()
    assert gone() is None
    marks = {gone: 1, of_a_thread(): 2}
    gc.collect()
    assert marks[gone] == 1
    assert len(marks) == 2


# What is lost, and who is told. One tier has bit 1, two have 3.

BOTH = 3


def keys_told(losses: Losses, caller: Caller | None, number: int) -> set[bytes]:
    return set(losses.owed_to(caller, number).losses)


def test_a_chunk_is_lost_once_every_tier_has_failed_it() -> None:
    losses = Losses()
    losses.stored([b"a"], BOTH)
    losses.failed(b"a", 0, Failure.IO_ERROR)
    assert not losses.is_decided(1)
    losses.failed(b"a", 1, Failure.DROPPED)
    assert losses.is_decided(1)
    assert losses.owed_to(None, 1).losses == {b"a": Loss(1, 1, Failure.DROPPED, 1)}
    losses.check()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_chunk_that_one_tier_has_is_not_lost(order: tuple[int, int]) -> None:
    losses = Losses()
    losses.stored([b"a"], BOTH)
    for tier in order:
        losses.kept([b"a"]) if tier == 0 else losses.failed(b"a", tier, Failure.IO_ERROR)
    assert losses.is_decided(1)
    assert keys_told(losses, None, 1) == set()


def test_a_chunk_that_a_tier_chose_not_to_keep_is_not_lost_but_waits_for_the_others() -> None:
    losses = Losses()
    losses.stored([b"a"], BOTH)
    losses.declined(b"a", 0)
    assert not losses.is_decided(1)
    losses.failed(b"a", 1, Failure.IO_ERROR)
    assert losses.is_decided(1)
    assert keys_told(losses, None, 1) == set()


def test_every_caller_is_told_once_of_what_was_lost_since_it_first_stored() -> None:
    losses, one, other, late = Losses(), of_a_thread(), of_a_thread(), of_a_thread()
    losses.joins(one)
    losses.joins(other)
    losses.stored([b"x"], 1)
    losses.stored([b"y"], 1)
    losses.failed(b"x", 0, Failure.IO_ERROR)
    losses.failed(b"y", 0, Failure.IO_ERROR)
    losses.joins(late)
    for caller in (one, other):
        assert keys_told(losses, caller, 2) == {b"x", b"y"}
        assert keys_told(losses, caller, 2) == {b"x", b"y"}, "until it has reached him"
        losses.told(caller, 2)
        assert keys_told(losses, caller, 2) == set()
    assert keys_told(losses, late, 2) == set()


def test_who_never_stored_is_told_what_nobody_was() -> None:
    losses, storer = Losses(), of_a_thread()
    losses.joins(storer)
    losses.stored([b"x"], 1)
    losses.failed(b"x", 0, Failure.IO_ERROR)
    assert keys_told(losses, of_a_thread(), 1) == {b"x"}
    losses.told(of_a_thread(), 1)
    assert keys_told(losses, of_a_thread(), 1) == set()
    assert keys_told(losses, storer, 1) == {b"x"}


def test_a_loss_that_is_mended_is_told_no_more() -> None:
    losses = Losses()
    losses.stored([b"x"], 1)
    losses.failed(b"x", 0, Failure.IO_ERROR)
    losses.kept([b"x"])
    assert keys_told(losses, None, 1) == set()


def test_a_chunk_that_is_stored_again_is_open_again_and_can_be_lost_again() -> None:
    losses, caller = Losses(), of_a_thread()
    losses.joins(caller)
    losses.stored([b"x"], 1)
    losses.failed(b"x", 0, Failure.IO_ERROR)
    losses.told(caller, 1)
    losses.stored([b"x"], 1)
    assert not losses.is_decided(2)
    losses.failed(b"x", 0, Failure.IO_ERROR)
    assert keys_told(losses, caller, 2) == {b"x"}


def test_who_flushed_first_waits_though_the_chunk_is_stored_again_meanwhile() -> None:
    losses = Losses()
    losses.stored([b"x"], 1)
    losses.stored([b"y"], 1)
    losses.stored([b"x"], 1)
    losses.kept([b"y"])
    assert not losses.is_decided(1)
    losses.check()


def test_what_is_open_at_the_end_is_lost() -> None:
    losses = Losses()
    losses.stored([b"x"], BOTH)
    losses.give_up()
    assert losses.owed_to(None, 1).losses == {b"x": Loss(1, 1, Failure.CLOSED, 0)}


def test_losses_and_callers_are_bounded_and_none_is_told_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "LOSSES_MAX", 2)
    monkeypatch.setattr(losses_module, "CALLERS_MAX", 2)
    losses = Losses()
    threads = [threading.Thread() for _ in range(4)]  # alive as objects
    callers: list[Caller] = [weakref.ref(thread) for thread in threads]
    losses.joins(callers[0])
    for number in range(3):
        losses.stored([b"%d" % number], 1)
        losses.failed(b"%d" % number, 0, Failure.IO_ERROR)
    for caller in callers[1:]:
        losses.joins(caller)
        losses.told(caller, 3)
    told = losses.owed_to(callers[0], 3)
    assert told.reasons == {Failure.IO_ERROR: 3}, "it is not remembered, and is told all the same"
    assert set(told.losses) == {b"1", b"2"}
    losses.check()
