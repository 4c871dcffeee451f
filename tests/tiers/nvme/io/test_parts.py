from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piece_rig import CHECKSUM, Failing, OneFile, chunks_of, ran, wanted, written

from kvtier.tiers.base import Buffer, Failure
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, PIECE_BYTES, aligned, blocks_of, parts_of
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.lanes import LOAD_LANES, STORE_LANES, Lanes
from kvtier.tiers.nvme.io.pieces import Written
from kvtier.tiers.nvme.io.plan import plan_reads, plan_writes

MIB = 1024 * 1024
LENGTHS = [
    PIECE_BYTES - 1,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    PIECE_BYTES + BLOCK_BYTES,
    2 * PIECE_BYTES - 1,
    2 * PIECE_BYTES + 4095,
    7 * PIECE_BYTES + 513,
]


class Counting(Files):
    """Counts the bytes in flight and the threads that moved some."""

    def __init__(self, together: int = 1) -> None:
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(together)  # so many calls at a time, or the test hangs and fails
        self.in_flight = self.in_flight_max = self.call_max = 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with _Flight(self, buffers):
            return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with _Flight(self, buffers):
            return super().preadv(fd, buffers, offset)


class _Flight:
    def __init__(self, files: Counting, buffers: Sequence[Buffer]) -> None:
        self._files, self._size_bytes = files, sum(map(len, buffers))

    def __enter__(self) -> None:
        files = self._files
        with files._lock:
            files.in_flight += self._size_bytes
            files.in_flight_max = max(files.in_flight_max, files.in_flight)
            files.call_max = max(files.call_max, self._size_bytes)
        files._barrier.wait(timeout=60)

    def __exit__(self, *_: object) -> None:
        with self._files._lock:
            self._files.in_flight -= self._size_bytes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()


@given(st.integers(1, 100 * MIB), st.integers(1, 4 * MIB // BLOCK_BYTES))
def test_parts_cover_a_chunk_in_whole_blocks_each_at_most_so_large(size_bytes: int, blocks: int) -> None:
    most_bytes = blocks * BLOCK_BYTES
    parts = parts_of(size_bytes, most_bytes)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == size_bytes
    assert len(parts) <= -(-size_bytes // most_bytes)
    for part in parts:
        assert part.start % BLOCK_BYTES == 0
        assert 0 < part.stop - part.start <= most_bytes


@pytest.mark.parametrize(
    ("count", "size_bytes", "calls"),
    [(1, 16 * MIB, 16), (4, 8 * MIB, 32), (8, 8 * MIB, 32), (64, 2 * MIB, 64), (64, 8 * MIB, 128)],
)
def test_large_chunks_are_cut_no_finer_than_all_lanes_need(count: int, size_bytes: int, calls: int) -> None:
    buffer = memoryview(bytes(size_bytes))
    chunks = [(b"%d" % number, buffer) for number in range(count)]
    assert len(plan_writes(Files(), -1, CHECKSUM, 1, chunks)) == calls
    wants = wanted(
        [Written(key, 1 + number * 4096, size_bytes, 0, 0) for number, (key, _) in enumerate(chunks)]
    )
    assert len(plan_reads(Files(), OneFile(None), CHECKSUM, wants)) == calls


@pytest.mark.parametrize("length", LENGTHS)
def test_a_chunk_about_the_size_of_a_piece_reads_back(source: OneFile, length: int) -> None:
    chunks = chunks_of([length, 5000, length])
    entries = written(source, chunks)
    assert [entry.key for entry in entries] == [b"0", b"1", b"2"]
    for (key, buffer), entry in zip(chunks, entries, strict=True):
        assert entry.checksum == CHECKSUM.of(key, buffer), "the same as of the whole chunk"
    wants = wanted(entries)
    assert ran(plan_reads(Files(), source, CHECKSUM, wants)) == {}
    for (_, buffer), want in zip(chunks, wants, strict=True):
        assert want.buffer == buffer


@given(
    lengths=st.lists(st.integers(1, 3 * PIECE_BYTES), min_size=1, max_size=4), seed=st.integers(0, 1 << 30)
)
def test_parts_may_run_in_any_order(lengths: list[int], seed: int) -> None:
    fd, shuffle = os.memfd_create("data"), random.Random(seed).shuffle
    try:
        source, chunks = OneFile(fd), chunks_of(lengths)
        writes = plan_writes(Files(), fd, CHECKSUM, 1, chunks)
        shuffled = list(writes)
        shuffle(shuffled)
        for write in shuffled:
            write()
        wants = wanted([entry for write in writes for entry in write.written])
        reads = plan_reads(Files(), source, CHECKSUM, wants)
        shuffled_reads = list(reads)
        shuffle(shuffled_reads)
        assert ran(shuffled_reads) == {}
        assert [want.buffer for want in wants] == [buffer for _, buffer in chunks]
    finally:
        os.close(fd)


async def test_one_chunk_uses_all_lanes_and_no_more_bytes_than_these_have(
    source: OneFile, lanes: Lanes
) -> None:
    assert source.fd is not None
    files = Counting(together=STORE_LANES)
    chunks = chunks_of([2 * STORE_LANES * PIECE_BYTES])
    writes = plan_writes(files, source.fd, CHECKSUM, 1, chunks)
    await lanes.store(writes, then=lambda: None)
    assert files.in_flight_max == STORE_LANES * PIECE_BYTES
    assert files.call_max == PIECE_BYTES
    wants = wanted([entry for write in writes for entry in write.written])
    reader = Counting(together=LOAD_LANES)
    reads = plan_reads(reader, source, CHECKSUM, wants)
    await lanes.load(reads)
    assert not any(read.failed for read in reads)
    assert wants[0].buffer == chunks[0][1]
    assert reader.in_flight_max == LOAD_LANES * PIECE_BYTES


@pytest.mark.parametrize("offset", [1, 512, 4097])
async def test_memory_of_any_alignment_is_written_and_read(
    source: OneFile, lanes: Lanes, offset: int
) -> None:
    assert source.fd is not None
    size_bytes = 3 * MIB + 77
    buffer = memoryview(bytearray(os.urandom(offset + size_bytes)))[offset:]
    writes = plan_writes(Files(), source.fd, CHECKSUM, 1, [(b"k", buffer)])
    await lanes.store(writes, then=lambda: None)
    (want,) = wanted([entry for write in writes for entry in write.written])
    around = memoryview(bytearray(b"\xaa" * (offset + size_bytes + 100)))
    want = want._replace(buffer=around[offset : offset + size_bytes])
    reads = plan_reads(Files(), source, CHECKSUM, [want])
    await lanes.load(reads)
    assert not any(read.failed for read in reads)
    assert want.buffer == buffer
    assert bytes(around[:offset]) == b"\xaa" * offset
    assert bytes(around[offset + size_bytes :]) == b"\xaa" * 100


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_write_that_fails_in_one_part_costs_its_chunk_and_no_other(source: OneFile, part: int) -> None:
    assert source.fd is not None
    chunks = chunks_of([BLOCK_BYTES, 3 * MIB, 3 * MIB, BLOCK_BYTES])
    bad = 1 + 1 + part * blocks_of(MIB) + 7
    writes = plan_writes(Failing(bad), source.fd, CHECKSUM, 1, chunks)
    for write in writes:
        write()
    assert [entry.key for write in writes for entry in write.written] == [b"0", b"2", b"3"]
    assert len([write for write in writes if write.error]) == 1


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_bad_block_in_one_part_costs_its_chunk_and_no_other(source: OneFile, part: int) -> None:
    entries = written(source, chunks_of([BLOCK_BYTES, 3 * MIB, 3 * MIB, BLOCK_BYTES]))
    bad = entries[1].block + part * blocks_of(MIB) + 7
    reads = plan_reads(Failing(bad), source, CHECKSUM, wanted(entries))
    assert ran(reads) == {b"1": Failure.IO_ERROR}
    (read,) = [read for read in reads if read.failed]
    assert read.unreadable == {0}
    assert len(read.errors) == 1


@pytest.mark.parametrize("length", [3 * MIB, 2 * MIB + 1])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_wrong_bytes_in_any_part_are_corrupt_if_the_index_still_has_them_else_missing(
    source: OneFile, length: int, where: str
) -> None:
    entries = written(source, chunks_of([length, length]))
    byte = {"first": 0, "middle": length // 2, "last": length - 1}[where]
    fd = os.open(f"/proc/self/fd/{source.fd}", os.O_RDWR)
    position = entries[0].block * BLOCK_BYTES + byte
    os.pwrite(fd, bytes([os.pread(fd, 1, position)[0] ^ 1]), position)
    os.fsync(fd)
    os.close(fd)
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"0": Failure.CORRUPT}
    source.current = False
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"0": Failure.MISSING}


def test_parts_that_changed_places_are_corrupt(source: OneFile) -> None:
    (entry,) = written(source, chunks_of([2 * MIB]))
    fd = os.open(f"/proc/self/fd/{source.fd}", os.O_RDWR)
    start = entry.block * BLOCK_BYTES
    first, second = os.pread(fd, MIB, start), os.pread(fd, MIB, start + MIB)
    os.pwrite(fd, second + first, start)
    os.fsync(fd)
    os.close(fd)
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted([entry]))) == {b"0": Failure.CORRUPT}


def test_a_chunk_whose_last_part_is_cut_off_is_corrupt(source: OneFile) -> None:
    entries = written(source, chunks_of([3 * MIB, 3 * MIB]))
    assert source.fd is not None
    os.truncate(source.fd, aligned(entries[1].block * BLOCK_BYTES + 2 * MIB + 5 * BLOCK_BYTES))
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"1": Failure.CORRUPT}


class Leaving(OneFile):
    """Its segment ends after so many parts have been read."""

    def __init__(self, fd: int | None, parts: int) -> None:
        super().__init__(fd)
        self._parts = parts

    def acquire(self, segment: int, generation: int) -> int | None:
        self._parts -= 1
        return super().acquire(segment, generation) if self._parts >= 0 else None


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_a_chunk_that_moves_while_its_parts_are_read_is_missing(source: OneFile, parts: int) -> None:
    entries = written(source, chunks_of([4 * MIB]))
    reads = plan_reads(Files(), Leaving(source.fd, parts), CHECKSUM, wanted(entries))
    assert ran(reads) == {b"0": Failure.MISSING}


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.EMFILE, "no descriptors"), Failure.NO_RESOURCES),
        (OSError(errno.ENOENT, "gone"), Failure.GONE),
        (MemoryError(), Failure.NO_RESOURCES),
    ],
)
def test_an_open_that_is_refused_says_nothing_about_the_place(
    source: OneFile, error: OSError, failure: Failure
) -> None:
    entries = written(source, chunks_of([3 * MIB]))
    source.error = error
    reads = plan_reads(Files(), source, CHECKSUM, wanted(entries))
    assert ran(reads) == {b"0": failure}
    assert not any(read.unreadable for read in reads)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
@pytest.mark.parametrize("module", ["pieces", "blocks"])
def test_memory_that_is_lacking_costs_the_keys_that_need_it(
    source: OneFile, monkeypatch: pytest.MonkeyPatch, error: Exception, module: str
) -> None:
    entries = written(source, chunks_of([2 * MIB, 2 * MIB + 1, 2 * MIB]))
    wants = wanted(entries)
    if module == "blocks":  # the copy for memory that the drive refuses
        unaligned = memoryview(bytearray(2 * MIB + 2))[1:]
        wants[1] = wants[1]._replace(buffer=unaligned)

    class Picky(Files):
        def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            if any(buffer.obj is wants[1].buffer.obj for buffer in buffers):
                raise OSError(errno.EINVAL, "not aligned")
            return super().preadv(fd, buffers, offset)

    def lacking(size_bytes: int) -> Buffer:
        raise error

    monkeypatch.setattr(f"kvtier.tiers.nvme.io.{module}.scratch", lacking)
    reads = plan_reads(Picky(), source, CHECKSUM, wants)
    assert ran(reads) == {b"1": Failure.NO_RESOURCES}
    assert source.fd is not None
    if module == "pieces":
        writes = plan_writes(Files(), source.fd, CHECKSUM, 1, chunks_of([2 * MIB + 1, 2 * MIB]))
        for write in writes:
            write()
        assert [entry.key for write in writes for entry in write.written] == [b"1"]
        assert {write.error.errno for write in writes if write.error} == {errno.ENOMEM}


class Short(Files):
    """Moves one or a few blocks at a time, and once no whole one, as a kernel may."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().pwritev(fd, [buffers[0][: self._most_bytes]], offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().preadv(fd, [buffers[0][: self._most_bytes]], offset)


@pytest.mark.parametrize("most_bytes", [BLOCK_BYTES, 5 * BLOCK_BYTES + 512, 65536])
def test_short_calls_go_on_where_they_ended(source: OneFile, most_bytes: int) -> None:
    assert source.fd is not None
    chunks = chunks_of([MIB + 100, 8 * BLOCK_BYTES])
    writes = plan_writes(Short(most_bytes), source.fd, CHECKSUM, 1, chunks)
    for write in writes:
        write()
    wants = wanted([entry for write in writes for entry in write.written])
    assert ran(plan_reads(Short(most_bytes), source, CHECKSUM, wants)) == {}
    assert [want.buffer for want in wants] == [buffer for _, buffer in chunks]


async def test_a_cancelled_load_returns_when_no_part_is_read_any_more(source: OneFile, lanes: Lanes) -> None:
    entries = written(source, chunks_of([32 * MIB]))
    (want,) = wanted(entries)
    started, release = threading.Semaphore(0), threading.Event()

    class Held(Files):
        reads = 0

        def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            started.release()
            release.wait()
            self.reads += 1
            return super().preadv(fd, buffers, offset)

    files = Held()
    task = asyncio.create_task(lanes.load(plan_reads(files, source, CHECKSUM, [want])))
    for _ in range(LOAD_LANES):
        await asyncio.to_thread(started.acquire)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "eight parts are still being read"
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = bytes(want.buffer)
    await lanes.load([lambda: None] * LOAD_LANES)  # whatever was queued has run
    assert files.reads == LOAD_LANES
    assert bytes(want.buffer) == before
