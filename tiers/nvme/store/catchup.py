"""Takes into the index what the log has and the index lacks, while the store serves.

Which segments are still to be read is noted in the index (`frame.py`). They are read the newest first, a part
of one at a time; whoever has CATCH_UP_BYTE does it, and where that process dies another one goes on.

What the store was given since wins over what is found here, and removals are final. A segment may be taken
over, emptied or used again meanwhile: every transaction looks whether it is still the one that was read.

An unsealed segment is held against being appended to until it is read: a power loss may have left a table
whose chunks were never synced, so each chunk is looked at, and the table is cut down to those that are there.

At the end, extents of past lives leave. Until then a load finds them gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from ..format.checksum import ChunkChecksum
from ..format.codec import Batch, Entry
from ..format.segment_file import SegmentFile, right_entries
from ..index.environment import Index
from ..index.ledger import Ledger
from ..index.records import Extent, SegmentState, Unread
from ..index.transaction import Transaction
from ..io.clock import now_s
from ..log.room import index_is_tight
from .directory import CATCH_UP_BYTE, StoreDirectory
from .frame import PASSING, PUT_STEP_MAX, READ_S, STALE

logger = logging.getLogger(__name__)

SWEEP_STEP_MAX = 4096  # extents looked at in one transaction that only reads
ALIVE = (SegmentState.OPEN, SegmentState.SEALED)


class CatchUp:
    """Goes through what is unread, step by step. Blocking; one thread at a time.

    Attributes:
        held: whether this process is the one that does it.
    """

    def __init__(self, directory: StoreDirectory, index: Index) -> None:
        self._directory, self._index = directory, index
        self._work: Iterator[int] | None = None
        self._claims: dict[int, int] = {}  # files of unsealed segments that are held, by number
        self._refused: set[int] = set()  # numbers of those that could not be opened, which a later start may
        self.held = False

    def claim(self) -> None:
        """Begin: hold every unsealed segment that is to be read, before others can take it over."""
        self._hold()
        with self._index.read() as txn:
            for one in txn.unread():
                segment = txn.segment(one.number)
                if segment is not None and segment.state is SegmentState.OPEN:
                    with self._refusals(one):
                        fd = self._directory.segments.claim(one.number)
                        if fd is not None:
                            self._claims[one.number] = fd

    def is_due(self) -> bool:
        """Whether there is something left, for this process or another."""
        with self._index.read() as txn:
            return txn.newest_unread() is not None or bool(txn.number(STALE))

    def step(self) -> int:
        """Take the next part in; returns how many entries it had, at least 1, or 0 where nothing is to do.

        Raises:
            OSError, TierError: the next call tries again.
        """
        if self._work is None:
            if not self.is_due() or not self._hold():
                return 0
            self._work = self._run()
        try:
            return next(self._work)
        except StopIteration:
            self.close()
            return 0
        except BaseException:
            self._work = None
            raise

    def finish(self) -> None:
        """Take everything in, as far as no other process does."""
        while self.step():
            pass

    def close(self) -> None:
        """Stop where it is; whoever comes next goes on. Idempotent."""
        self._work = None
        for fd in self._claims.values():
            self._directory.files.close(fd)
        self._claims.clear()
        if self.held:
            self._directory.unclaim(CATCH_UP_BYTE)
            self.held = False

    def _hold(self) -> bool:
        self.held = self.held or self._directory.try_claim(CATCH_UP_BYTE)
        return self.held

    def _run(self) -> Iterator[int]:
        while (one := self._newest()) is not None:
            yield from self._read(one)
        yield from self._drop_stale()

    def _newest(self) -> Unread | None:
        with self._index.read() as txn:
            return max((one for one in txn.unread() if one.number not in self._refused), default=None)

    @contextmanager
    def _refusals(self, one: Unread) -> Iterator[None]:
        """Leave out a segment that the drive refuses to open, and go on with the others."""
        try:
            yield
        except OSError as error:
            if error.errno in PASSING:
                raise
            self._refused.add(one.number)
            path = self._directory.segments.path(one.number)
            logger.warning("nvme: %s cannot be opened: %s; what is in it is not found", path, error.strerror)

    def _read(self, one: Unread) -> Iterator[int]:
        fd = self._claims.pop(one.number, None)
        if fd is None:
            with self._refusals(one):
                fd = self._open(one)
        if one.number in self._refused:
            return
        try:
            if fd is not None:
                file = self._directory.segments.file(fd, one.number, one.generation)
                for part in _parts(self._batches(file)):
                    self._index.write(lambda txn, part=part: _put(txn, one, part))  # type: ignore[misc]
                    self._directory.files.reached("caught up some")
                    yield len(part)
        finally:
            if fd is not None:
                self._directory.files.close(fd)
        self._index.write(lambda txn: txn.drop_unread(one))
        yield 1

    def _open(self, one: Unread) -> int | None:
        """The segment's file, claimed where that is possible; None where it is gone."""
        segments = self._directory.segments
        fd = segments.claim(one.number)
        if fd is not None:
            return fd
        try:
            return segments.open(one.number)
        except FileNotFoundError:
            return None

    def _batches(self, file: SegmentFile) -> Iterator[Batch]:
        """What the segment holds, the newest first where it is sealed; an unsealed one's chunks as far as
        they are there."""
        sealed = None
        with suppress(OSError):
            sealed = file.read_trailer()
        if sealed is not None:
            yield from (batch for batch in reversed(sealed) if not batch.removals)
            return
        with suppress(OSError):
            for batch in file.sweep():
                if not batch.removals:
                    yield self._corrected(file, batch)

    def _corrected(self, file: SegmentFile, batch: Batch) -> Batch:
        """Cut the table down to the chunks that are there, on the drive too: the trailer is to repeat it."""
        checksum = ChunkChecksum(batch.namespace)
        with self._index.read() as txn:  # what the checkpoint has was durable when it was made
            known = {entry.key for entry in batch.entries if _is_at(txn, batch, entry)}
        unknown = [entry for entry in batch.entries if entry.key not in known]
        there = known | {entry.key for entry in right_entries(file.files, file.fd, unknown, checksum)}
        entries = tuple(entry for entry in batch.entries if entry.key in there)
        if entries == batch.entries:
            return batch
        fewer = replace(batch, entries=entries)
        fewer = replace(fewer, data_blocks=batch.end_block - fewer.block - fewer.table_blocks)
        assert fewer.end_block == batch.end_block, "what follows is found behind it"
        with suppress(OSError):
            file.write_table(fewer)
        return fewer

    def _drop_stale(self) -> Iterator[int]:
        position: bytes | None = b""
        while position is not None:
            with self._index.read() as txn:
                if not txn.number(STALE):
                    return
                segments = txn.segments()
                lives = {number: segment.generation for number, segment in segments.items()}
                extents, position = txn.extents_after(position, SWEEP_STEP_MAX)
            stale = [
                (scope, key)
                for scope, key, extent in extents
                if lives.get(extent.segment) != extent.generation
            ]
            for start in range(0, len(stale), PUT_STEP_MAX):
                part = stale[start : start + PUT_STEP_MAX]
                self._index.write(lambda txn, part=part: _drop(txn, part))  # type: ignore[misc]
            yield max(1, len(extents))
        self._index.write(lambda txn: txn.set_number(STALE, 0))


def _parts(batches: Iterator[Batch]) -> Iterator[Sequence[tuple[Batch, Entry]]]:
    """Steps of bounded size."""
    part: list[tuple[Batch, Entry]] = []
    for batch in batches:
        for entry in batch.entries:
            part.append((batch, entry))
            if len(part) == PUT_STEP_MAX:
                yield part
                part = []
    if part:
        yield part


def _place(batch: Batch, entry: Entry) -> Extent:
    place = (batch.name.segment, batch.name.generation, entry.block, entry.length_bytes)
    return Extent(*place, entry.checksum, entry.stored_s, 0, 0)


def _is_at(txn: Transaction, batch: Batch, entry: Entry) -> bool:
    extent = txn.extent(batch.scope, entry.key)
    return extent is not None and extent[:3] == _place(batch, entry)[:3]


def _put(txn: Transaction, one: Unread, part: Sequence[tuple[Batch, Entry]]) -> None:
    segment = txn.segment(one.number)
    if segment is None or segment.generation != one.generation or segment.state not in ALIVE:
        return  # emptied meanwhile
    if index_is_tight(txn):
        return  # what is left out is older than what is there; it is a miss
    ledger, read_s = Ledger(txn), now_s()
    for batch, entry in part:
        removal = txn.removal(batch.scope, entry.key)
        if not ledger.in_force(batch.scope) or (removal is not None and batch.order <= removal.order):
            continue
        before = ledger.extent(batch.scope, entry.key)
        if before is None or not _is_alive(ledger, before):
            ledger.put(batch.scope, entry.key, before, _place(batch, entry))
            txn.set_number(READ_S, read_s)
    ends = {id(batch): batch for batch, _ in part}.values()  # once a batch: it adds its keys up
    end_block = max(batch.end_block for batch in ends)
    segment = ledger.segment(one.number)
    assert segment is not None, "it was there at the start of the transaction"
    ledger.set_segment(one.number, segment._replace(end_block=max(segment.end_block, end_block)))
    ledger.close()


def _is_alive(ledger: Ledger, extent: Extent) -> bool:
    segment = ledger.segment(extent.segment)
    return segment is not None and segment.generation == extent.generation


def _drop(txn: Transaction, names: Sequence[tuple[int, bytes]]) -> None:
    ledger = Ledger(txn)
    for scope, key in names:
        extent = ledger.extent(scope, key)
        if extent is not None and not _is_alive(ledger, extent):
            ledger.forget(scope, key, extent)
    ledger.close()
