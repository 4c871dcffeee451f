"""Puts together what writes to the log of a store: for a tier, and for a tool."""

from __future__ import annotations

from typing import NamedTuple

from .io.lanes import Lanes
from .log.ahead import Ahead
from .log.append import Appender
from .log.durability import Durability
from .log.events import Events
from .log.lifecycle import Log
from .log.reclaim import Allowance, Carrier
from .log.tail import Tail
from .store.opening import Store
from .wear.budget import WriteBudget


class Writing(NamedTuple):
    """The parts. `carrier` appends to an open segment of its own, where the store is large enough."""

    log: Log
    durability: Durability
    ahead: Ahead
    appender: Appender
    carrier: Carrier

    @staticmethod
    def to(store: Store, lanes: Lanes, events: Events, allowance: Allowance, budget: WriteBudget) -> Writing:
        segments, index = store.directory.segments, store.index
        log = Log(segments, index, events)
        durability = Durability(lanes, log, events)
        ahead = Ahead(lanes, log, durability, events)

        def appender(*, carries: bool) -> Appender:
            tail = Tail(ahead, durability, events, carries=carries)
            return Appender(lanes, segments, index, ahead, durability, tail, events)

        beside, apart = appender(carries=False), appender(carries=True)
        carrier = Carrier(
            lanes,
            segments,
            index,
            log.victims,
            ahead,
            durability,
            allowance,
            budget,
            beside=beside,
            apart=apart,
        )
        return Writing(log, durability, ahead, beside, carrier)
