"""The order of what happens to a key, as a rebuild sees it: it rises over the store, whatever the clock.

Every table has an order, and a removal counts against chunks of a lower one. A clock may be set back, and
those of two processes may differ, so the index keeps the highest order that was given and the last removal:

    a removal   takes the next order in the transaction that drops the keys
    a store     takes a number of its own when it is placed; where a removal has come since, its tables are
                written again, with the next order, before it is committed
    a carry     takes the next order in the transaction that sees its chunks still in place: any removal
                after that is higher, and any store that it may meet is lower or stays
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...base import ChunkKey
from .ledger import Ledger
from .records import Removal
from .transaction import Transaction

_LAST, _LAST_REMOVAL = "order", "removed"  # numbers in the index


class Since(NamedTuple):
    """A moment of the store: the order that was given out then, and how many segments had been opened.

    Where `opened` is None, it does not matter in which segment something is written.
    """

    order: int
    opened: int | None


def next_order(txn: Transaction) -> int:
    """Give out an order above all that were given out or committed."""
    order = max(txn.number(_LAST), time.time_ns()) + 1
    txn.set_number(_LAST, order)
    return order


def record_removal(txn: Transaction, scope: int, keys: Iterable[ChunkKey]) -> int:
    """Record that this transaction removes keys; returns the removal's order.

    A checkpoint of an index that has not got the chunks must not lack the reason.
    """
    order, opened = next_order(txn), txn.number("opened")
    txn.set_number(_LAST_REMOVAL, order)
    for key in keys:
        txn.put_removal(scope, key, Removal(order, opened))
    return order


def removed(digest: bytes, keys: Sequence[ChunkKey], requested: bool, txn: Transaction) -> tuple[int, int]:
    """Drop the keys' extents in this transaction.

    A removal on request is of every key, there or not: the log may have a chunk that the index lacks, because
    it is not read yet, or its writer died before the commit, or another one had stored it first.

    Returns:
        The scope in force, and the order of the removals, 0 where there are none to be written.
    """
    namespace = txn.namespace(digest)
    if namespace is None:
        return 0, 0
    scope, ledger = namespace.scope, Ledger(txn)
    for key in keys:
        extent = ledger.extent(scope, key)
        if extent is not None:
            ledger.forget(scope, key, extent)
    ledger.close()
    return scope, record_removal(txn, scope, keys) if requested else 0


def is_outdated(txn: Transaction, order: int) -> bool:
    """Whether a removal has come since a store took this order."""
    return order <= txn.number(_LAST_REMOVAL)


def note(txn: Transaction, order: int, *, removal: bool) -> None:
    """Raise what the index knows to an order that is in use."""
    for name in (_LAST, _LAST_REMOVAL) if removal else (_LAST,):
        txn.set_number(name, max(order, txn.number(name)))
