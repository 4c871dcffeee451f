"""What was not made durable, and who was told: a flush says what is true for whoever calls it.

A stored chunk is *open* until a tier below has it, or has chosen not to take it, or every tier has failed to:
then it is lost. A caller is told of a loss once, by the first flush after it that reaches him. A tier may get
the chunk after all, as failed ones are tried again: then there is nothing to tell.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from ...tiers.base import ChunkKey, Failure

LOSSES_MAX = 65536  # by name; of older ones only their number is kept
CALLERS_MAX = 1024  # who stored or flushed lately; one that is forgotten may be told twice

Caller: TypeAlias = weakref.ref[Any]
"""An asyncio task, or a thread that runs none. It is equal to itself only, also when that is gone."""


def calling() -> Caller:
    """Who calls this."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs on this thread
        task = None
    caller = weakref.ref(threading.current_thread() if task is None else task)
    hash(caller)  # of the living one, and kept from then on: a reference to one that is gone has none
    return caller


class Loss(NamedTuple):
    """A chunk that no tier below has.

    Attributes:
        first, last: the numbers of the stores that this is about; a chunk may be stored again.
        tier: which one failed last, by its place in the chain.
    """

    first: int
    last: int
    reason: Failure
    tier: int


class Told(NamedTuple):
    """What one flush has to tell: the lost chunks by key, and of how many only the reasons are known."""

    losses: dict[ChunkKey, Loss]
    reasons: Counter[Failure]


class Undecided(NamedTuple):
    """How many chunks are open, and which tiers may still take one of them, each as a bit."""

    chunks: int
    tiers: int


@dataclass(slots=True)
class _Open:
    """A chunk of which it is not yet known whether it is lost; `tiers` has a bit for each that may."""

    first: int
    last: int
    tiers: int
    is_declined: bool = False


class Losses:
    """Stored chunks that are open or lost. Pure; its owner holds a lock."""

    def __init__(self) -> None:
        # Mutable state; each method changes it in one go.
        self.number = 0  # of the last store
        self._open: OrderedDict[ChunkKey, _Open] = OrderedDict()  # by `first`, which rises
        self._lost: OrderedDict[ChunkKey, Loss] = OrderedDict()
        self._unnamed: Counter[Failure] = Counter()  # older losses
        self._unnamed_number = 0  # of the last of these
        self._marks: OrderedDict[Caller, int] = OrderedDict()  # up to which store each caller was told
        self._told_number = 0  # up to which store anybody was
        self._forgotten_mark: int | None = None  # the least of the callers that are not remembered

    def stored(self, keys: Iterable[ChunkKey], tiers: int) -> None:
        """Chunks were stored, or were again, and these tiers are owed them."""
        lost, opened, number = self._lost, self._open, self.number
        for key in keys:
            number += 1
            if lost:
                lost.pop(key, None)
            one = opened.get(key)
            if one is None:
                opened[key] = _Open(number, number, tiers)
            else:  # it keeps its place: who flushed before waits for it, too
                one.last, one.tiers = number, one.tiers | tiers
        self.number = number

    def kept(self, keys: Iterable[ChunkKey]) -> None:
        """A tier has the chunks, or nobody misses them any more."""
        lost, opened = self._lost, self._open
        for key in keys:
            opened.pop(key, None)
            if lost:
                lost.pop(key, None)

    def declined(self, key: ChunkKey, tier: int) -> None:
        """A tier has chosen not to keep the chunk, which is nobody's fault."""
        one = self._open.get(key)
        if one is not None:
            one.is_declined = True
            self._answered(key, one, tier, Failure.NO_SPACE)

    def failed(self, key: ChunkKey, tier: int, reason: Failure) -> None:
        """A tier could not take the chunk; it may be tried again."""
        one = self._open.get(key)
        if one is not None:
            self._answered(key, one, tier, reason)

    def not_used(self, tier: int) -> None:
        """Nothing is given to this tier any more."""
        for key in list(self._open):
            self.failed(key, tier, Failure.GONE)

    def forget_all(self) -> None:
        self._open.clear()
        self._lost.clear()
        self._unnamed.clear()

    def give_up(self) -> None:
        """Nothing moves any more: what is open is lost."""
        for key, one in list(self._open.items()):
            self._lose(key, one, (one.tiers & -one.tiers).bit_length() - 1, Failure.CLOSED)
        self._open.clear()

    def is_decided(self, number: int) -> bool:
        """Whether nothing is open of what was stored up to `number`."""
        oldest = next(iter(self._open.values()), None)
        return oldest is None or oldest.first > number

    def open_of(self, number: int) -> Undecided:
        """What is open of the stores up to `number`."""
        waiting = list(takewhile(lambda one: one.first <= number, self._open.values()))
        return Undecided(len(waiting), functools.reduce(operator.or_, (one.tiers for one in waiting), 0))

    # Who is told.

    def joins(self, caller: Caller) -> None:
        """A caller is about to store: what was lost before its first store is not its concern."""
        self._set_mark(caller, self._marks.get(caller, self.number))

    def owed_to(self, caller: Caller | None, number: int) -> Told:
        """What a flush of the stores up to `number` has to tell this caller; None is nobody in particular."""
        mark = self._mark_of(caller)
        losses = {key: loss for key, loss in self._lost.items() if mark < loss.last and loss.first <= number}
        reasons = Counter(loss.reason for loss in losses.values())
        if mark < self._unnamed_number:
            reasons += self._unnamed
        return Told(losses, reasons)

    def told(self, caller: Caller | None, number: int) -> None:
        """The caller was told of everything that was stored up to `number`."""
        self._told_number = max(self._told_number, number)
        if caller is not None:
            self._set_mark(caller, max(self._mark_of(caller), number))

    def check(self) -> None:
        """Assert integrity; for tests."""
        firsts = [one.first for one in self._open.values()]
        assert firsts == sorted(firsts), "the oldest comes first"
        assert not self._open.keys() & self._lost.keys(), "what is open is not lost"
        assert all(one.tiers for one in self._open.values()), "some tier may still take what is open"
        assert len(self._lost) <= LOSSES_MAX
        assert len(self._marks) <= CALLERS_MAX

    def _answered(self, key: ChunkKey, one: _Open, tier: int, reason: Failure) -> None:
        one.tiers &= ~(1 << tier)
        if one.tiers:
            return
        del self._open[key]
        if not one.is_declined:
            self._lose(key, one, tier, reason)

    def _lose(self, key: ChunkKey, one: _Open, tier: int, reason: Failure) -> None:
        self._lost[key] = Loss(one.first, one.last, reason, tier)
        while len(self._lost) > LOSSES_MAX:
            _, oldest = self._lost.popitem(last=False)
            self._unnamed[oldest.reason] += 1
            self._unnamed_number = max(self._unnamed_number, oldest.last)

    def _mark_of(self, caller: Caller | None) -> int:
        if caller is not None and caller in self._marks:
            return self._marks[caller]
        if caller is None or self._forgotten_mark is None:
            return self._told_number
        return min(self._told_number, self._forgotten_mark)

    def _set_mark(self, caller: Caller, mark: int) -> None:
        self._marks[caller] = mark
        self._marks.move_to_end(caller)
        if len(self._marks) > CALLERS_MAX:
            self._forget_callers(next(iter(self._marks.items())))

    def _forget_callers(self, oldest: tuple[Caller, int]) -> None:
        """Forget those that are gone; where none is, the one that called longest ago."""
        gone = [caller for caller in self._marks if caller() is None]
        if not gone:
            caller, mark = oldest
            self._forgotten_mark = min(
                mark, self._forgotten_mark if self._forgotten_mark is not None else mark
            )
            gone = [caller]
        for caller in gone:
            del self._marks[caller]
