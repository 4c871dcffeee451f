"""What a store needs done while it is used: catching up, checkpoints, a look at shared memory, old records.

Each process that uses the store calls `round` again and again; what only one may do, the first to come does.
"""

from __future__ import annotations

import logging
import time

from ..index import memory
from ..index.transaction import Transaction
from ..log.room import KEPT_BYTES
from .checkpoint import MADE_OPENED, MADE_S, write_checkpoint
from .home import home_place, note_damage, write_again
from .opening import Store

logger = logging.getLogger(__name__)

CHECKPOINT_CHUNKS = 1_000_000  # stored since the last one: what a start then has to read, in seconds
CHECKPOINT_PERIOD_S = 300.0  # at least between two, where less than that was stored
CHECKPOINT_PERIOD_MAX_S = 86_400.0  # also where nothing was stored: only the index says that time has passed
CHECKPOINT_RATE = 4 * 1024 * 1024  # bytes a second over time, at most: a small part of what a drive writes
LOOK_PERIOD_S = 60.0  # what killed readers hold back is as much as is changed in that time
REMOVALS_PERIOD_S = 60.0  # from one look at all removals to the next
REMOVALS_STEP = 512  # looked at in one transaction: a few milliseconds in which nobody else writes


class Chores:
    """The chores of one opened store. Blocking; one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._directory, self._index, self._catch_up = store.directory, store.index, store.catch_up
        self._made_s, self._seen_s = 0, time.monotonic()  # the last checkpoint, and since when it is known
        self._look_due_s = time.monotonic() + LOOK_PERIOD_S
        self._removals_due_s = time.monotonic() + REMOVALS_PERIOD_S
        self._removals_from: bytes | None = None  # where to go on; None: all were looked at
        self._missed = False
        self._damage_noted = False

    def round(self) -> bool:
        """Do what is due, or a part of it; returns whether there is more to do at once.

        Raises:
            OSError, TierError: the next round tries again.
        """
        if self._catch_up.step():
            return True
        self._look_at_memory()
        self._note_damage()
        self._look_around()
        if self._is_checkpoint_due():
            write_checkpoint(self._directory, self._index)
        return self._forget_removals()

    def _look_at_memory(self) -> None:
        home = self._directory.home
        if self._missed or home is None or memory.is_there(home):
            return
        self._missed = True
        logger.error(
            "nvme: something has removed or replaced the index of %s, or a part of it, in %s (systemd's "
            "RemoveIPC, a cleaner of temporary files); who uses the store goes on, nobody else can join "
            "until all have stopped",
            self._directory.root,
            home_place(self._directory),
        )

    def _note_damage(self) -> None:
        if self._index.damaged and not self._damage_noted:
            note_damage(self._directory)
            self._damage_noted = True

    def _look_around(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_PERIOD_S
            self._index.free_dead_readers()
            write_again(self._directory, self._index)

    def _forget_removals(self) -> bool:
        """Drop, in steps, what only segments need that are gone; returns whether there are more."""
        if time.monotonic() >= self._removals_due_s:
            self._removals_due_s = time.monotonic() + REMOVALS_PERIOD_S
            self._removals_from = b""
        if self._removals_from is None:
            return False
        self._removals_from = self._index.write(self._forget_some)
        return self._removals_from is not None

    def _forget_some(self, txn: Transaction) -> bytes | None:
        if txn.number(KEPT_BYTES):
            return None  # a segment that cannot be opened now may come back, with whatever is in it
        oldest = txn.oldest_opened(other_than=0)
        if oldest is None:
            oldest = txn.number("opened") + 1
        assert self._removals_from is not None, "there are some to look at"
        return txn.forget_removals(oldest, self._removals_from, REMOVALS_STEP)

    def _is_checkpoint_due(self) -> bool:
        with self._index.read() as txn:
            made_s, made_opened = txn.number(MADE_S), txn.number(MADE_OPENED)
            segments = txn.number("opened") - made_opened
            chunk_bytes = txn.number("chunk_bytes") or self._directory.facts.chunk_bytes
            size_bytes = txn.tree_bytes()
        chunks = segments * self._directory.facts.segment_bytes // chunk_bytes
        if made_s != self._made_s:
            self._made_s, self._seen_s = made_s, time.monotonic()
        age_s = time.monotonic() - self._seen_s  # a clock that was ahead when it was made is none of its age
        is_old = age_s >= max(CHECKPOINT_PERIOD_S, size_bytes / CHECKPOINT_RATE)
        return chunks >= CHECKPOINT_CHUNKS or (is_old and (segments > 0 or age_s >= CHECKPOINT_PERIOD_MAX_S))
