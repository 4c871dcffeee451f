"""Brings the frame of an index up to what the drive says: segments, namespaces, counters, removals.

The index is the checkpoint's, or an empty one. Each segment file costs a look at its header. One that is of
another life than the index has, or was open then, is noted as unread, and costs a look at its footer too, an
unsealed one a sweep. Removals of the unread ones are taken in here: what was removed is never served. Their
chunks are taken in later (`catchup.py`), while the store serves.

    header older than the record     the record is of a life that had not begun on the drive: nothing is in it
    the same, and it was sealed      nothing came since
    the same, and it was open        unread: some came since
    newer than the record, or none   unread; what the index has in its older life leaves later
    unread, and without any table    free: it was made ready, and nothing was appended

A drive that refuses a place costs what is at that place. A header that cannot be read is found again from the
footer or the tables; a file is removed only when it can be read and is none of this store's. One that cannot
even be opened is kept for a later start, and its room counts under the cap.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..format.codec import FIRST_BLOCK, Batch, Entry, Footer
from ..format.segment_file import SegmentFile
from ..index import order
from ..index.environment import Index
from ..index.ledger import Ledger
from ..index.records import Namespace, Removal, Segment, SegmentState, Unread
from ..index.transaction import Transaction
from ..log.budget import SEGMENT_SLACK_BYTES
from ..log.room import KEPT_BYTES
from ..log.segments import Segments
from ..wear.record import add_written, note_unknown
from .directory import StoreDirectory

logger = logging.getLogger(__name__)

READ_S = "rebuilt_s"  # the number that says when tables were read: nobody knows what was read before
STALE = "stale"  # the number that says whether extents of past lives may be in the index
PUT_STEP_MAX = 512  # entries of a transaction, so that others' commits get their turn
OPEN_TRIES_MAX = 3  # of a file, where the system and not the drive refuses
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)


class Found(NamedTuple):
    """What a segment file says about itself; `end_block` as far as its tables were looked at."""

    generation: int
    opened: int
    is_sealed: bool
    end_block: int = FIRST_BLOCK
    removals: tuple[Batch, ...] = ()
    scope: int = 0
    order: int = 0
    is_empty: bool = False  # it was looked at from end to end, and there is no table


def frame(directory: StoreDirectory, index: Index, *, is_current: bool, tidy: bool) -> None:
    """Bring the frame up to date. Call it alone, while opening.

    Args:
        is_current: nobody has used the store since the checkpoint: in open segments nothing is new.
        tidy: remove files that are none of this store's, and records without a file.

    Raises:
        OSError: the directory, or every segment in it, cannot be read.
    """
    with index.read() as txn:
        before, namespaces = txn.segments(), txn.namespaces()
    fileless = _fileless(directory, namespaces, is_current=is_current)
    found, unread, refused = _look_at_all(directory, before, is_current=is_current)
    if tidy:
        lost = before.keys() - directory.segments.paths().keys()
        index.write(lambda txn: _drop_records(txn, lost))
    index.write(lambda txn: _put_frame(txn, directory, found, unread, () if is_current else fileless))
    _note_kept(directory, index, {number: refused[number] for number in refused.keys() - before.keys()})
    if tidy:
        for number in directory.segments.paths().keys() - found.keys() - before.keys() - refused.keys():
            directory.segments.unlink(number)
    for number in sorted(unread):
        for batch in found[number].removals:
            _put_removals(index, batch)
        directory.step()


class _Looks(NamedTuple):
    """What the segment files say: which are to be read, and which could not even be opened."""

    found: dict[int, Found]
    unread: set[int]
    refused: dict[int, OSError]


def _look_at_all(directory: StoreDirectory, before: dict[int, Segment], *, is_current: bool) -> _Looks:
    looks = _Looks({}, set(), {})
    for number in sorted(directory.segments.paths()):
        record = before.get(number)
        try:
            one = _look(directory.segments, number, record, is_current=is_current)
        except OSError as error:
            looks.refused[number] = error
            continue
        directory.step()
        if one is not None:
            looks.found[number] = one
            if _is_unread(one, record, is_current=is_current):
                looks.unread.add(number)
    for refusal in looks.refused.values():
        if not looks.found or refusal.errno in PASSING:
            raise refusal  # not a place of the drive but the drive, or the system: it may be well some day
    return looks


def _is_unread(found: Found, record: Segment | None, *, is_current: bool) -> bool:
    if found.is_empty:
        return False
    if record is None or found.generation > record.generation:
        return True
    is_open = record.state is SegmentState.OPEN and not is_current
    return is_open and found.generation == record.generation


def _look(segments: Segments, number: int, record: Segment | None, *, is_current: bool) -> Found | None:
    """What the file says, None where it is no segment of this store.

    Raises:
        OSError: it cannot be opened.
    """
    fd = _opened(segments, number)
    try:
        file = segments.file(fd, number, 0)
        try:
            header = file.read_header()
        except OSError:
            one = _found_again(file, record)
            if one is None:
                raise  # whose it is cannot be told
        else:
            if header is not None and header.name[:2] != file.name[:2]:
                return None
            one = (
                Found(header.name.generation, header.opened, False) if header else _found_again(file, record)
            )
        if one is None or not _is_unread(one, record, is_current=is_current):
            return one
        return _with_contents(segments.file(fd, number, one.generation), one)
    finally:
        segments.files.close(fd)


def _opened(segments: Segments, number: int) -> int:
    for _ in range(OPEN_TRIES_MAX - 1):
        try:
            return segments.open(number)
        except OSError as error:
            if error.errno not in PASSING:
                raise
    return segments.open(number)


def _with_contents(file: SegmentFile, one: Found) -> Found:
    footer = _footer(file)
    is_sealed = footer is not None and footer.name == file.name
    if footer is not None and is_sealed:
        removals = _trailer_removals(file, footer)
        if removals is not None:
            return one._replace(is_sealed=True, removals=removals, scope=footer.scope, order=footer.order)
    swept, is_whole = _swept(file)
    return one._replace(
        is_sealed=is_sealed,
        is_empty=is_whole and not swept and not is_sealed,
        end_block=max([FIRST_BLOCK, *(batch.end_block for batch in swept)]),
        removals=tuple(batch for batch in swept if batch.removals),
        scope=max((batch.scope for batch in swept), default=0),
        order=max((batch.order for batch in swept), default=0),
    )


def _footer(file: SegmentFile) -> Footer | None:
    try:
        return file.read_footer()
    except OSError:
        return None


def _trailer_removals(file: SegmentFile, footer: Footer) -> tuple[Batch, ...] | None:
    """None where they cannot be read, or a power loss has torn them: then they are in the tables alone."""
    with suppress(OSError):
        removals = file.read_removals(footer)
        return None if removals is None else tuple(removals)
    return None


def _swept(file: SegmentFile, *, any_life: bool = False) -> tuple[list[Batch], bool]:
    """The batches of a segment as far as they can be read, and whether that is all of it."""
    swept: list[Batch] = []
    try:
        for batch in file.sweep(any_life=any_life):
            swept.append(batch)
    except OSError:
        return swept, False
    return swept, True


def _found_again(file: SegmentFile, record: Segment | None) -> Found | None:
    """A segment without a header: its latest life, by its footer or its tables; the oldest of all."""
    footer = _footer(file)
    lives = [footer.name.generation] if footer is not None else []
    lives += [batch.name.generation for batch in _swept(file, any_life=True)[0]]
    if record is not None and (not lives or record.generation >= max(lives)):
        return Found(record.generation, record.opened, False)
    return Found(max(lives), 0, False) if lives else None


def is_kept(txn: Transaction, number: int) -> bool:
    """Whether it could not be opened when all were looked at: it has no record, and may hold chunks."""
    return bool(txn.number(_kept(number)))


def _note_kept(directory: StoreDirectory, index: Index, refused: dict[int, OSError]) -> None:
    sizes = {number: _allocated_bytes(directory, number) for number in refused}
    for number, error in sorted(refused.items()):
        logger.warning(
            "nvme: %s cannot be opened: %s; it is kept, and its %d bytes count under the cap",
            directory.segments.path(number),
            error.strerror,
            sizes[number],
        )
    index.write(lambda txn: _put_kept(txn, directory.segments.taken_numbers(), sizes))


def _put_kept(txn: Transaction, numbers: Collection[int], sizes: dict[int, int]) -> None:
    for number in numbers:
        if number in sizes or is_kept(txn, number):
            txn.set_number(_kept(number), int(number in sizes))
    txn.set_number(KEPT_BYTES, sum(sizes.values()))


def _kept(number: int) -> str:
    return f"kept {number}"


def _allocated_bytes(directory: StoreDirectory, number: int) -> int:
    try:
        return directory.segments.path(number).lstat().st_blocks * 512
    except OSError:
        return directory.facts.segment_bytes + SEGMENT_SLACK_BYTES


def _drop_records(txn: Transaction, lost: Collection[int]) -> None:
    for number in lost:
        txn.drop_segment(number)
    if lost:
        txn.set_number(STALE, 1)


def _put_frame(
    txn: Transaction,
    directory: StoreDirectory,
    found: dict[int, Found],
    unread: set[int],
    dropped: Collection[bytes],
) -> None:
    for old in txn.unread():
        if old.number not in found or found[old.number].generation != old.generation:
            txn.drop_unread(old)
    for number, one in found.items():
        _put_segment(txn, directory, number, one, is_unread=number in unread)
    _put_namespaces(txn, directory, dropped)
    records = txn.namespaces().values()
    scopes = [one.scope for one in found.values()] + [record.scope for record in records]
    _raise(txn, "scope", scopes)
    _raise(txn, "segment", [*directory.segments.taken_numbers()])
    # What was written since; wrong by what lies in segments that were open then, or are now.
    filled = [one.opened for one in found.values() if not one.is_empty]
    newer = max(0, max(filled, default=0) - txn.number("opened"))
    add_written(txn, newer * directory.facts.segment_bytes)
    if not txn.number("opened"):  # there was no checkpoint: that may be years' worth
        note_unknown(txn)
    _raise(txn, "opened", [one.opened for one in found.values()])
    for one in found.values():
        order.note(txn, one.order, removal=False)
        for batch in one.removals:
            order.note(txn, batch.order, removal=True)


def _raise(txn: Transaction, name: str, values: Sequence[int]) -> None:
    txn.set_number(name, max([txn.number(name), *values]))


def _put_segment(
    txn: Transaction, directory: StoreDirectory, number: int, one: Found, *, is_unread: bool
) -> None:
    record = txn.segment(number)
    allocated_bytes = directory.facts.segment_bytes + SEGMENT_SLACK_BYTES
    state = SegmentState.SEALED if one.is_sealed else SegmentState.OPEN
    fresh = Segment(state, one.generation, one.opened, one.end_block, 0, 0, allocated_bytes)
    if one.is_empty:  # it was made ready, and nobody came to append to it
        fresh = fresh._replace(state=SegmentState.FREE, end_block=0)
    if record is None:
        put = fresh
    elif one.generation > record.generation:
        put = fresh
        txn.set_number(STALE, 1)
    elif one.generation < record.generation:
        put = record._replace(state=SegmentState.FREE, end_block=0, live_chunks=0, live_bytes=0)
    elif is_unread:
        put = record._replace(state=state, end_block=max(record.end_block, one.end_block))
    else:
        put = record
    if put != record:
        txn.drop_segment(number)  # another life of it: no step of the one before
        txn.put_segment(number, put)
    if is_unread:
        txn.put_unread(Unread(put.opened, number, put.generation))


def _fileless(
    directory: StoreDirectory, namespaces: Mapping[bytes, Namespace], *, is_current: bool
) -> Collection[bytes]:
    """Namespaces without a good file. Those of an old checkpoint may be out of force, others are lost."""
    files = directory.namespaces.read()
    lost = [digest for digest in namespaces if digest not in files]
    for digest in lost:
        if namespaces[digest].chunks:
            logger.warning(
                "nvme: %s is missing or damaged: %s",
                directory.namespaces.path(digest),
                "its chunks are kept, for whoever opens the namespace next"
                if is_current
                else "it was removed or lost, so that its chunks are not found",
            )
    return lost


def _put_namespaces(txn: Transaction, directory: StoreDirectory, dropped: Collection[bytes]) -> None:
    """Files are written before the index: their scope is the one in force, and without one there is none."""
    for digest, file in directory.namespaces.read().items():
        record = txn.namespace(digest)
        if file.scope and (record is None or record.scope < file.scope):
            txn.put_namespace(digest, Namespace(file.scope, file.epoch, 0, 0, 0, 0))
    for digest in dropped:
        txn.drop_namespace(digest)


def _put_removals(index: Index, batch: Batch) -> None:
    for start in range(0, len(batch.entries), PUT_STEP_MAX):
        part = batch.entries[start : start + PUT_STEP_MAX]
        index.write(lambda txn, part=part: _remove(txn, batch, part))  # type: ignore[misc]


def _remove(txn: Transaction, batch: Batch, entries: Sequence[Entry]) -> None:
    ledger = Ledger(txn)
    for entry in entries:
        known = txn.removal(batch.scope, entry.key)
        if known is not None and known.order >= batch.order:
            continue
        # It came after the checkpoint, and so after whatever the checkpoint has under this key.
        txn.put_removal(batch.scope, entry.key, Removal(batch.order, entry.block))
        extent = ledger.extent(batch.scope, entry.key)
        if extent is not None:
            ledger.forget(batch.scope, entry.key, extent)
    ledger.close()
