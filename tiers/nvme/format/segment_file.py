"""The log on disk: one segment's format, and how it is appended to, sealed and read back.

Theory of operation. A segment is one preallocated file of fixed size, in blocks of 4 KiB:

    block 0   header   store, segment id, generation
    ...       batch    table of the batch, then its chunks side by side, each padded to whole blocks
    ...       batch
    ...                free space
    ...       body     every table again, one after the other       } written when the segment is sealed,
    last      footer   where the body is, and its checksum          } so that a rebuild reads it in one go

A table names each chunk of its batch: key, place, length, checksum, time. It is written after the chunks
it names, so a valid table means that its chunks were written; and it repeats store, segment, generation
and its own place, so that nothing left over from an earlier life of the file, and nothing copied from
elsewhere, passes for one. The log thus describes itself, sealed or not: the index can be rebuilt from it.

A file is used again in place when its segment was reclaimed: the generation rises, the header is made
durable, and from then on old tables and the old footer no longer count.

Batches are written concurrently, so an unsealed segment may have holes where a batch was never finished.
A sweep therefore hops from table to table and, where it finds none, looks at every block that follows.

A batch may also hold removals: keys that were forgotten on purpose and must not come back with a rebuild.
`order` says which of two batches about the same key came later. A removal is carried over when its segment
is reclaimed, as long as there are segments of its time, which may hold the chunk: in place of a block, its
entry says how many segments had been opened by then.

Two bytes of every segment file are locked, never by content but as signs between processes; a killed
process gives both up. CLAIM_BYTE: whoever appends to or reclaims the segment. READERS_BYTE: shared by
whoever reads from it, taken alone by whoever is about to overwrite it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...base import Buffer, ChunkKey
from ..io.files import BLOCK_BYTES, PIECE_BYTES, Files, aligned, read_all, scratch, write_all
from .checksum import ChunkChecksum, block_checksum

CLAIM_BYTE = 1
READERS_BYTE = 0
FIRST_BLOCK = 1  # block 0 is the header
SEGMENT_BYTES_MAX = 256 * 1024 * 1024  # where larger ones gain nothing and a reclaim gets coarse
SEGMENT_CHUNKS_MIN = 16  # of chunks so large that the last one, for which no room is left, would be much
BAD_BLOCKS_MAX = 16  # of one sweep: a bad place is a few blocks; more is a drive that fails
SEGMENTS_PER_STORE = 64  # of a store too small for segments of that size: the grain of its eviction

_HEADER = struct.Struct("<8s16sIIQ")
_HEADER_MAGIC = b"KVTSEG\x00\x01"
_TABLE = struct.Struct("<8s16sIIIIIQI32sBII")
_TABLE_MAGIC = b"KVTTAB\x00\x01"
_ENTRY = struct.Struct("<HIIII")
_FOOTER = struct.Struct("<8s16sIIIII")
_FOOTER_MAGIC = b"KVTEND\x00\x01"
_CHECKSUM = struct.Struct("<I")
_KIND_CHUNKS, _KIND_REMOVALS = 1, 2


class SegmentName(NamedTuple):
    """One life of one segment file."""

    store: bytes
    segment: int
    generation: int


class Entry(NamedTuple):
    """One line of a table; a removal has no length, and how many segments were opened for a block."""

    key: ChunkKey
    block: int
    length_bytes: int
    checksum: int
    stored_s: int

    @property
    def blocks(self) -> int:
        return blocks_of(self.length_bytes)


@dataclass(frozen=True, slots=True)
class Batch:
    """One table: what it names and where it lies.

    Attributes:
        block: where the table lies.
        data_blocks: blocks of chunks behind the table.
        order: rises with time over the whole store.
        scope: the namespace's number in the index at that time.
        namespace: the namespace's digest.
        removals: the entries name keys that were forgotten.
    """

    name: SegmentName
    block: int
    data_blocks: int
    order: int
    scope: int
    namespace: bytes
    removals: bool
    entries: tuple[Entry, ...]

    @property
    def table_blocks(self) -> int:
        return blocks_of(table_bytes(entry.key for entry in self.entries))

    @property
    def end_block(self) -> int:
        return self.block + self.table_blocks + self.data_blocks

    def encode(self) -> bytes:
        """The table's bytes, not padded."""
        lines = b"".join(
            _ENTRY.pack(len(key), block, length, checksum, stored_s) + key
            for key, block, length, checksum, stored_s in self.entries
        )
        kind = _KIND_REMOVALS if self.removals else _KIND_CHUNKS
        store, segment, generation = self.name
        head = _TABLE.pack(
            _TABLE_MAGIC,
            store,
            segment,
            generation,
            self.block,
            self.table_blocks,
            self.data_blocks,
            self.order,
            self.scope,
            self.namespace,
            kind,
            len(self.entries),
            len(lines),
        )
        return head + _CHECKSUM.pack(block_checksum(head + lines)) + lines


class Header(NamedTuple):
    name: SegmentName
    opened: int  # rises with each opening in the store: the age of the segment

    def encode(self) -> bytes:
        head = _HEADER.pack(_HEADER_MAGIC, *self.name, self.opened)
        return (head + _CHECKSUM.pack(block_checksum(head))).ljust(BLOCK_BYTES, b"\0")

    @staticmethod
    def decode(data: Buffer | bytes) -> Header | None:
        """The header in `data`, or None where there is none."""
        head = bytes(data[: _HEADER.size])
        if len(data) < _HEADER.size + _CHECKSUM.size or not head.startswith(_HEADER_MAGIC):
            return None
        if _CHECKSUM.unpack_from(data, _HEADER.size)[0] != block_checksum(head):
            return None
        _, store, segment, generation, opened = _HEADER.unpack(head)
        return Header(SegmentName(store, segment, generation), opened)


def blocks_of(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def table_bytes(keys: Iterable[ChunkKey]) -> int:
    """The size of a table of these keys."""
    return _TABLE.size + _CHECKSUM.size + sum(_ENTRY.size + len(key) for key in keys)


def segment_bytes_for(capacity_bytes: int, chunk_bytes: int) -> int:
    """The size of segments for a new store."""
    smallest = aligned(chunk_bytes) * 2 + 4 * BLOCK_BYTES  # two chunks, header, table, body, footer
    fitting = aligned(capacity_bytes // SEGMENTS_PER_STORE)
    return max(smallest, min(fitting, max(SEGMENT_BYTES_MAX, SEGMENT_CHUNKS_MIN * aligned(chunk_bytes))))


def reads_right(files: Files, fd: int, entry: Entry, checksum: ChunkChecksum) -> bool:
    """Whether the chunk's bytes can be read and are those that the entry names."""
    memory = scratch(entry.length_bytes)
    try:
        done = read_all(files, fd, [memory], entry.block * BLOCK_BYTES)
    except OSError:
        return False
    payload = memory[: entry.length_bytes]
    return done >= entry.length_bytes and checksum.of(entry.key, payload) == entry.checksum


def decode_table(data: Buffer | bytes, store: bytes, segment: int, generation: int | None) -> Batch | None:
    """The table that `data` begins with, or None; any generation passes where `generation` is None."""
    start = _TABLE.size + _CHECKSUM.size
    if len(data) < start or bytes(data[: len(_TABLE_MAGIC)]) != _TABLE_MAGIC:
        return None
    fields = _TABLE.unpack_from(data)
    _, its_store, its_segment, its_generation, block, _, data_blocks, order = fields[:8]
    scope, namespace, kind, count, lines_bytes = fields[8:]
    if (its_store, its_segment) != (store, segment) or its_generation != (generation or its_generation):
        return None
    if len(data) < start + lines_bytes:
        return None
    lines = bytes(data[start : start + lines_bytes])
    if _CHECKSUM.unpack_from(data, _TABLE.size)[0] != block_checksum(bytes(data[: _TABLE.size]) + lines):
        return None
    name = SegmentName(store, segment, its_generation)
    entries = tuple(_entries(lines, count))
    return Batch(name, block, data_blocks, order, scope, namespace, kind == _KIND_REMOVALS, entries)


def _entries(lines: bytes, count: int) -> Iterator[Entry]:
    position = 0
    for _ in range(count):
        key_bytes, block, length, checksum, stored_s = _ENTRY.unpack_from(lines, position)
        position += _ENTRY.size
        yield Entry(lines[position : position + key_bytes], block, length, checksum, stored_s)
        position += key_bytes


def _table_blocks_of(data: Buffer) -> int:
    """Blocks that the table beginning in `data` says it has, 0 where none begins."""
    if bytes(data[: len(_TABLE_MAGIC)]) != _TABLE_MAGIC:
        return 0
    return int(_TABLE.unpack_from(data)[5])


class Placement(NamedTuple):
    """Where a batch of some leading chunks goes."""

    block: int
    chunks: int
    table_blocks: int
    data_blocks: int


class BadBlocks:
    """Counts what one sweep cannot read; a drive refuses for seconds, so it gives up after a few."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._count += 1
            if self._count > BAD_BLOCKS_MAX:
                raise


class SegmentFile:
    """Blocking access to one segment's metadata through an open file; one thread at a time."""

    def __init__(self, files: Files, fd: int, name: SegmentName, size_bytes: int) -> None:
        self.files = files
        self.fd = fd
        self.name = name
        self.size_blocks = size_bytes // BLOCK_BYTES

    def write_header(self, opened: int) -> None:
        """Begin this life of the file, durably: from here on nothing of an earlier one counts."""
        self._write(0, Header(self.name, opened).encode())
        self.files.sync_data(self.fd)

    def read_header(self) -> Header | None:
        return Header.decode(self._read(0, 1))

    def write_table(self, batch: Batch) -> bytes:
        """Write the table to its place; returns its bytes, as the trailer repeats them."""
        table = batch.encode()
        self._write(batch.block, table)
        return table

    def write_trailer(self, batches: Sequence[bytes]) -> None:
        """Seal: every chunk durable first, then the tables again at the end."""
        self.files.sync_data(self.fd)
        body = b"".join(batches)
        start = self.size_blocks - 1 - blocks_of(len(body))
        head = _FOOTER.pack(_FOOTER_MAGIC, *self.name, start, len(body), block_checksum(body))
        footer = head + _CHECKSUM.pack(block_checksum(head))
        self._write(start, body.ljust(aligned(len(body)), b"\0") + footer.ljust(BLOCK_BYTES, b"\0"))
        self.files.sync_data(self.fd)

    def read_trailer(self) -> list[Batch] | None:
        """The batches of a sealed segment, or None where the footer is not this life's or is damaged."""
        footer = self._read(self.size_blocks - 1, 1)
        head = bytes(footer[: _FOOTER.size])
        if _CHECKSUM.unpack_from(footer, _FOOTER.size)[0] != block_checksum(head):
            return None
        magic, store, segment, generation, start, body_bytes, checksum = _FOOTER.unpack(head)
        if (magic, store, segment, generation) != (_FOOTER_MAGIC, *self.name):
            return None
        body = self._read(start, blocks_of(body_bytes))[:body_bytes]
        if block_checksum(body) != checksum:
            return None
        return list(self._batches_in(body))

    def sweep(self, end_block: int | None = None, *, any_life: bool = False) -> Iterator[Batch]:
        """Every batch before `end_block`, found by its table, in the order of place.

        Steps over tables that cannot be read.

        Raises:
            OSError: more than `BAD_BLOCKS_MAX` blocks cannot be read.
        """
        end = self.size_blocks if end_block is None else end_block
        generation = None if any_life else self.name.generation
        block, bad = FIRST_BLOCK, BadBlocks()
        while block < end:
            batch = None
            with bad.counted():
                batch = self._table_at(block, self._read(block, 1), generation)
            if batch is not None:
                yield batch
                block = max(batch.end_block, block + 1)
            else:
                block = self._next_candidate(block + 1, end, bad)

    def _next_candidate(self, block: int, end: int, bad: BadBlocks) -> int:
        window_blocks = PIECE_BYTES // BLOCK_BYTES
        while block < end:
            window = self._window(block, min(window_blocks, end - block), bad)
            for i in range(len(window) // BLOCK_BYTES):
                if _table_blocks_of(window[i * BLOCK_BYTES :]):
                    return block + i
            block += window_blocks
        return end

    def _window(self, block: int, count: int, bad: BadBlocks) -> Buffer:
        """`count` blocks; zeroes where they cannot be read."""
        with contextlib.suppress(OSError):
            return self._read(block, count)
        window = scratch(count * BLOCK_BYTES)
        for i in range(count):
            with bad.counted():
                window[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] = self._read(block + i, 1)
        return window

    def _table_at(self, block: int, first: Buffer, generation: int | None) -> Batch | None:
        blocks = _table_blocks_of(first)
        if not 0 < blocks <= self.size_blocks - block:
            return None
        data = first if blocks == 1 else self._read(block, blocks)
        batch = decode_table(data, self.name.store, self.name.segment, generation)
        return batch if batch is not None and batch.block == block else None

    def _batches_in(self, body: Buffer) -> Iterator[Batch]:
        while len(body):
            batch = decode_table(body, self.name.store, self.name.segment, self.name.generation)
            if batch is None:
                return
            yield batch
            body = body[table_bytes(entry.key for entry in batch.entries) :]

    def _write(self, block: int, data: bytes) -> None:
        memory = scratch(len(data))
        memory[: len(data)] = data
        write_all(self.files, self.fd, [memory], block * BLOCK_BYTES)

    def _read(self, block: int, count: int) -> Buffer:
        """`count` blocks; zeroes where the file is shorter."""
        memory = scratch(count * BLOCK_BYTES)
        read_all(self.files, self.fd, [memory], block * BLOCK_BYTES)
        return memory


class OpenSegment:
    """The append position of a segment that this process claimed. Used on one event loop.

    Room for the trailer is kept free from the first batch on, so sealing never fails for lack of room.
    """

    def __init__(self, file: SegmentFile, next_block: int, batches: Iterable[bytes] = ()) -> None:
        self.file = file
        self._first_block = next_block
        # Mutable state.
        self.next_block = next_block
        self.batches = list(batches)  # encoded tables, for the trailer
        self.batches_bytes = sum(map(len, self.batches))
        self.writers = 0  # batches placed and not yet settled
        self.unsynced = False
        self.refused = False  # some batch could not be written
        self.lost = False  # the index does not know it as ours any more

    @property
    def name(self) -> SegmentName:
        return self.file.name

    def place(self, keys: Sequence[ChunkKey], lengths_bytes: Sequence[int]) -> Placement | None:
        """Take room for as many leading chunks as fit; None when not even one does."""
        count, tables, data_blocks = 0, table_bytes(()), 0
        for key, length in zip(keys, lengths_bytes, strict=True):
            grown = tables + _ENTRY.size + len(key)
            if not self._fits(grown, data_blocks + blocks_of(length)):
                break
            count, tables, data_blocks = count + 1, grown, data_blocks + blocks_of(length)
        if not count:
            return None
        placement = Placement(self.next_block, count, blocks_of(tables), data_blocks)
        self.next_block += placement.table_blocks + data_blocks
        self.batches_bytes += tables
        self.writers += 1
        return placement

    def hold(self) -> None:
        """Keep the segment from being sealed until it is settled once more."""
        self.writers += 1

    def settle(self, table: bytes | None) -> None:
        """The batch of one placement is written and named by `table`, or was given up."""
        assert self.writers > 0, "each placement is settled once"
        self.writers -= 1
        if table is not None:
            self.batches.append(table)
            self.unsynced = True

    @property
    def is_in_vain(self) -> bool:
        """Whether nothing was ever written to it though it was tried: then another would fare no better."""
        return self.refused and not self.batches

    def rewind(self) -> bool:
        """Give back the room of batches that were not written; False while some may yet be."""
        assert not self.batches, "nothing is overwritten"
        if self.writers:
            return False
        self.next_block, self.batches_bytes = self._first_block, 0
        return True

    def _fits(self, tables_bytes: int, data_blocks: int) -> bool:
        body = blocks_of(self.batches_bytes + tables_bytes)
        end = self.next_block + blocks_of(tables_bytes) + data_blocks
        return end + body + 1 <= self.file.size_blocks
