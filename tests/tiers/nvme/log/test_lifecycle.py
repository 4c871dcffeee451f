"""Claims of segments: what stands in their way, and what they leave behind."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from faulty_files import RefusingFiles
from nvme_rig import CHUNK_BYTES, IDENTITY, MIB

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.format.codec import FIRST_BLOCK, Batch, Entry
from kvtier.tiers.nvme.format.open_segment import OpenSegment
from kvtier.tiers.nvme.index.environment import _MapFull
from kvtier.tiers.nvme.index.records import Extent, Segment, SegmentState
from kvtier.tiers.nvme.index.transaction import Transaction
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.chunks import Removals
from kvtier.tiers.nvme.log.events import Events
from kvtier.tiers.nvme.log.lifecycle import Log
from kvtier.tiers.nvme.log.segments import READERS_BYTE, Segments
from kvtier.tiers.nvme.store.opening import Store, close_store, open_store, remove_orphans

NAMESPACE = b"n" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(
        RefusingFiles(),
        tmp_path / "store",
        capacity_bytes=8 * MIB,
        reserve_bytes=0,
        identity=IDENTITY,
        chunk_bytes=CHUNK_BYTES,
    )
    yield store
    close_store(store)


def log_over(store: Store, files: Files | None = None) -> Log:
    directory = store.directory
    segments = Segments(files or directory.files, directory.root, directory.facts)
    return Log(segments, store.index, Events())


def claimed(log: Log) -> OpenSegment:
    segment = log.claim()
    assert segment is not None
    return segment


def sealed(log: Log, segment: OpenSegment) -> None:
    segment.file.sync()
    segment.file.write_trailer(segment.batches)
    log.seal([segment])


def segments(store: Store) -> dict[int, Segment]:
    with store.index.read() as txn:
        return txn.segments()


def files_of(store: Store) -> list[int]:
    return sorted(store.directory.segments.paths())


def freed(store: Store, log: Log, count: int) -> list[int]:
    """Make so many segments and free them."""
    opened = [claimed(log) for _ in range(count)]
    for segment in opened:
        sealed(log, segment)
        victim = log.victims.begin()
        assert victim is not None
        log.victims.finish(victim)
    return [segment.name.segment for segment in opened]


def with_a_batch(store: Store, segment: OpenSegment) -> Batch:
    """Append a table as an append does that commits, its one chunk apart."""
    placement = segment.place([b"key"], [CHUNK_BYTES])
    assert placement is not None
    entry = Entry(b"key", placement.block + placement.table_blocks, CHUNK_BYTES, 0, 0)
    batch = Batch(segment.name, placement.block, placement.data_blocks, 1, 1, NAMESPACE, False, (entry,))
    segment.complete(segment.file.write_table(batch))
    number, record = segment.name.segment, segments(store)[segment.name.segment]
    store.index.write(lambda txn: txn.put_segment(number, record._replace(end_block=batch.end_block)))
    return batch


def damage_header(store: Store, number: int) -> None:
    with store.directory.segments.path(number).open("r+b") as file:
        file.write(b"\xff" * 512)


class BadHeaders(Files):
    """The real files; the first block of these segments can be neither read nor written."""

    def __init__(self, *numbers: int) -> None:
        self._names = {f"{number:08d}.seg" for number in numbers}

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._refuse(fd, offset)
        return super().preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._refuse(fd, offset)
        return super().pwritev(fd, buffers, offset)

    def _refuse(self, fd: int, offset: int) -> None:
        if not offset and Path(os.readlink(f"/proc/self/fd/{fd}")).name in self._names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_free_segment_that_is_read_is_left_for_the_next_claim(store: Store) -> None:
    log, files = log_over(store), store.directory.files
    read, other = freed(store, log, 2)
    reader = files.open_data(store.directory.segments.path(read))
    assert files.try_lock(reader, READERS_BYTE, exclusive=False)
    first = claimed(log)
    files.close(reader)
    second = claimed(log)
    assert (first.name.segment, second.name.segment) == (other, read)
    log.leave(first)
    log.leave(second)


def test_a_segment_left_open_that_cannot_be_read_is_reclaimed_and_others_are_claimed(store: Store) -> None:
    left = claimed(log_over(store))
    with_a_batch(store, left)
    log_over(store).leave(left)
    log = log_over(store, BadHeaders(left.name.segment))
    fresh = claimed(log)
    assert fresh.name.segment != left.name.segment
    assert segments(store)[left.name.segment].state is SegmentState.RECLAIMING
    victim = log.victims.begin()
    assert victim is not None
    assert victim.number == left.name.segment
    log.victims.finish(victim)
    log.leave(fresh)


class FailsOnce(Files):
    """The real files; the first read at this place of a data file is refused."""

    def __init__(self, block: int, code: int) -> None:
        self._offset, self._codes = block * BLOCK_BYTES, [code]

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if offset == self._offset and self._codes:
            code = self._codes.pop()
            raise OSError(code, os.strerror(code))
        return super().preadv(fd, buffers, offset)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM])
def test_a_segment_left_open_whose_tables_cannot_all_be_read_gets_no_trailer_that_lacks_them(
    store: Store, code: int
) -> None:
    left = claimed(log_over(store))
    batches = [with_a_batch(store, left) for _ in range(3)]
    log_over(store).leave(left)
    log = log_over(store, FailsOnce(batches[1].block, code))
    fresh = claimed(log)
    assert fresh.name.segment != left.name.segment
    assert segments(store)[left.name.segment].state is SegmentState.SEALED
    with store.directory.segments.opened(left.name.segment, left.name.generation) as file:
        assert file is not None
        assert file.read_trailer() is None, "a valid one is believed to list everything"
        assert list(file.sweep()) == batches
    log.leave(fresh)


def test_a_free_segment_that_cannot_be_begun_is_removed(store: Store) -> None:
    (bad,) = freed(store, log_over(store), 1)
    log = log_over(store, BadHeaders(bad))
    fresh = claimed(log)
    assert fresh.name.segment != bad
    assert bad not in segments(store)
    assert files_of(store) == [fresh.name.segment]
    log.leave(fresh)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_file_system_without_room_for_a_segment_leaves_the_old_ones_to_be_reclaimed(
    store: Store, code: int
) -> None:
    class Full(Files):
        def allocate(self, fd: int, size_bytes: int) -> None:
            raise OSError(code, os.strerror(code))

    old = claimed(log_over(store))
    sealed(log_over(store), old)
    log = log_over(store, Full())
    assert log.claim() is None
    assert files_of(store) == list(segments(store)) == [old.name.segment]
    victim = log.victims.begin()
    assert victim is not None
    log.victims.finish(victim)
    again = claimed(log)
    assert again.name.segment == old.name.segment
    log.leave(again)


def test_a_drive_that_refuses_every_write_raises_and_leaves_no_segment_behind(store: Store) -> None:
    files = store.directory.files
    assert isinstance(files, RefusingFiles)
    files.writes = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        log_over(store).claim()
    assert not segments(store)
    assert not files_of(store)


def test_a_damaged_header_of_a_segment_left_open_costs_no_chunk(store: Store) -> None:
    log = log_over(store)
    left = claimed(log)
    batch = with_a_batch(store, left)
    log.leave(left)
    damage_header(store, left.name.segment)
    taken = claimed(log)
    assert taken.name == left.name
    assert taken.next_block == batch.end_block
    assert taken.batches == [batch.encode()]
    assert taken.unsynced, "who wrote it may have died before it synced"
    header = taken.file.read_header()
    assert header is not None
    assert header.name == left.name
    log.leave(taken)


def test_a_segment_left_before_it_was_begun_is_begun(store: Store) -> None:
    log = log_over(store)
    left = claimed(log)
    log.leave(left)
    damage_header(store, left.name.segment)
    taken = claimed(log)
    assert (taken.name, taken.next_block) == (left.name, FIRST_BLOCK)
    log.leave(taken)


def test_a_transaction_that_runs_again_has_had_no_effect(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A's record cannot be committed at first; B claims before A tries again; each gets its own."""
    log, taken = log_over(store), list[OpenSegment]()
    put, failures = log._put_new, [_MapFull("nvme", "full")]

    def refused_once(number: int, free_bytes: int, txn: Transaction) -> Segment | None:
        record = put(number, free_bytes, txn)
        if failures:
            raise failures.pop()
        return record

    monkeypatch.setattr(log, "_put_new", refused_once)
    monkeypatch.setattr(
        "kvtier.tiers.nvme.index.environment.time.sleep", lambda _: taken.append(claimed(log_over(store)))
    )
    segment = claimed(log)
    (other,) = taken
    assert files_of(store) == sorted(segments(store)) == [segment.name.segment, other.name.segment]
    log.leave(segment)
    log.leave(other)


@pytest.mark.parametrize(("step", "numbers"), [("created a segment file", 2), ("locked a new segment", 1)])
def test_whoever_opens_the_store_removes_a_new_file_until_it_is_claimed(
    store: Store, step: str, numbers: int
) -> None:
    class Beside(Files):
        looks = 0

        def reached(self, reached: str) -> None:
            if reached == step and not self.looks:
                self.looks += 1
                remove_orphans(store.directory, store.index)

    files = Beside()
    segment = claimed(log_over(store, files))
    assert files.looks
    assert files_of(store) == list(segments(store)) == [segment.name.segment] == [numbers]
    log_over(store).leave(segment)


def test_a_record_that_lost_its_file_half_way_through_a_removal_is_dropped(store: Store) -> None:
    log = log_over(store)
    freed(store, log, 2)
    first, _ = files_of(store)
    store.directory.segments.path(first).unlink()
    assert log.room.shrink()
    assert not files_of(store)
    assert not log.room.shrink()
    assert not segments(store)


def test_files_are_left_alone_inside_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, takeovers, reuses, reclaims and removals: who holds the index makes no call on a file."""
    inside = threading.local()

    class Watched(Files):
        def __getattribute__(self, name: str) -> Any:
            assert not getattr(inside, "now", False) or name.startswith("_"), f"{name} inside a transaction"
            return super().__getattribute__(name)

    write_once = store.index._write_once

    def watched(change: Callable[[Transaction], Any]) -> Any:
        def within(txn: Transaction) -> Any:
            inside.now = True
            try:
                return change(txn)
            finally:
                inside.now = False

        return write_once(within)

    monkeypatch.setattr(store.index, "_write_once", watched)
    log = log_over(store, Watched())
    numbers = freed(store, log, 3)
    left = claimed(log)
    log.leave(left)
    taken = claimed(log)
    assert taken.name == left.name
    log.leave(taken)
    assert log.room.shrink()
    assert len(files_of(store)) == len(numbers) - 1


def test_removals_are_carried_while_segments_of_their_time_are_there(store: Store) -> None:
    log = log_over(store)
    noting, other = claimed(log), claimed(log)
    key_to_opened = {b"of now": 2, b"of before": 0, b"there again": 2}
    entries = tuple(Entry(key, opened, 0, 0, 0) for key, opened in key_to_opened.items())
    placement = noting.place(list(key_to_opened), [0, 0, 0])
    assert placement is not None
    batch = Batch(noting.name, placement.block, 0, 7, 1, NAMESPACE, True, entries)
    noting.complete(noting.file.write_table(batch))
    extent = Extent(other.name.segment, 1, 2, CHUNK_BYTES, 0, 0, 0, 0)
    store.index.write(lambda txn: txn.put_extent(1, b"there again", extent))
    sealed(log, noting)
    victim = log.victims.begin()
    assert victim is not None
    assert victim.removals == (Removals(NAMESPACE, 1, 7, entries[:1]),)
    log.victims.abandon(victim)
    log.leave(other)


def test_a_reclaim_that_the_index_stops_gives_its_claim_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_over(store)
    sealed(log, claimed(log))

    def refuse(_file: object) -> None:
        raise TierError("nvme", "the index cannot say")

    with monkeypatch.context() as patched:
        patched.setattr(log.victims, "_contents", refuse)
        with pytest.raises(TierError):
            log.victims.begin()
    victim = log.victims.begin()
    assert victim is not None
    log.victims.finish(victim)
