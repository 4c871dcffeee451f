"""The bytes of a segment: header, tables and footer, encoded and decoded without any I/O.

Theory of operation. A segment is one preallocated file of fixed size, in blocks of 4 KiB:

    block 0   header   store, segment id, generation
    ...       batch    table of the batch, then its chunks side by side, each padded to whole blocks
    ...       batch
    ...                free space
    ...       body     every table again, one after the other       } the trailer, written when the segment
    last      footer   where the body is, its checksum, what is in  } is sealed: one read finds them all

A table names each chunk of its batch: key, place, length, checksum, time. It is written after the chunks
it names, so a valid table means that its chunks were written. It repeats store, segment, generation and its
own place, so nothing left over from an earlier life of the file, and nothing copied from elsewhere, passes
for one. The log thus describes itself, sealed or not: the index can be rebuilt from it.

A file is reused in place once its segment was reclaimed: the generation rises, the header is made durable,
and from then on old tables and the old footer no longer count.

Batches are written concurrently, so an unsealed segment may have holes where a batch was never finished.
A sweep therefore hops from table to table and, where it finds none, looks at every block that follows.

A batch may also hold removals: keys that were removed on request and must not come back with a rebuild.
`order` says which of two batches about the same key came later. When the segment of a removal is reclaimed,
the removal is carried over as long as there are segments of its time, which may hold the chunk. For that,
its entry says, in place of a block, how many segments had been opened by then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...base import Buffer, ChunkKey
from ..io.blocks import BLOCK_BYTES, aligned, blocks_of
from .checksum import block_checksum

FIRST_BLOCK = 1  # block 0 is the header

_HEADER = struct.Struct("<8s16sIIQ")
_HEADER_MAGIC = b"KVTSEG\x00\x01"
_TABLE = struct.Struct("<8s16sIIIIIQI32sBII")
_TABLE_MAGIC = b"KVTTAB\x00\x01"
_ENTRY = struct.Struct("<HIIII")
_FOOTER = struct.Struct("<8s16sIIIIIIIQ")
_FOOTER_MAGIC = b"KVTEND\x00\x02"
_CHECKSUM = struct.Struct("<I")
_KIND_CHUNKS, _KIND_REMOVALS = 1, 2

ENTRY_BYTES = _ENTRY.size  # of one line of a table, beside its key


class SegmentName(NamedTuple):
    """One life of one segment file."""

    store: bytes
    segment: int
    generation: int


class Entry(NamedTuple):
    """One line of a table. Of a removal, `block` says how many segments were opened; it has no length."""

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
        removals: the entries name keys that were removed.
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
    """The first block of a segment file."""

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


class Footer(NamedTuple):
    """The last block of a sealed segment file: where the copies of its tables are, and what they say.

    Attributes:
        removals_bytes: of the tables of removals, which come first in the body.
        scope: the highest that a table names.
        order: the highest of a table.
    """

    name: SegmentName
    block: int
    body_bytes: int
    body_checksum: int
    removals_bytes: int = 0
    scope: int = 0
    order: int = 0

    def encode(self) -> bytes:
        head = _FOOTER.pack(_FOOTER_MAGIC, *self.name, *self[1:])
        return (head + _CHECKSUM.pack(block_checksum(head))).ljust(BLOCK_BYTES, b"\0")

    @staticmethod
    def decode(data: Buffer | bytes) -> Footer | None:
        """The footer in `data`, or None where there is none."""
        head = bytes(data[: _FOOTER.size])
        if _CHECKSUM.unpack_from(data, _FOOTER.size)[0] != block_checksum(head):
            return None
        magic, store, segment, generation, *rest = _FOOTER.unpack(head)
        if magic != _FOOTER_MAGIC:
            return None
        return Footer(SegmentName(store, segment, generation), *rest)


def encode_trailer(name: SegmentName, tables: Sequence[bytes], size_blocks: int) -> tuple[int, bytes]:
    """The block at which the trailer of a segment of `size_blocks` begins, and its bytes."""
    heads = [_TABLE.unpack_from(table) for table in tables]
    removals = b"".join(
        table for table, head in zip(tables, heads, strict=True) if head[10] == _KIND_REMOVALS
    )
    body = removals + b"".join(
        table for table, head in zip(tables, heads, strict=True) if head[10] != _KIND_REMOVALS
    )
    block = size_blocks - 1 - blocks_of(len(body))
    scope, order = max((head[8] for head in heads), default=0), max((head[7] for head in heads), default=0)
    footer = Footer(name, block, len(body), block_checksum(body), len(removals), scope, order)
    return block, body.ljust(aligned(len(body)), b"\0") + footer.encode()


def decode_body(body: Buffer, footer: Footer) -> list[Batch] | None:
    """The batches whose tables a trailer repeats, by place, or None where they are damaged."""
    if block_checksum(body) != footer.body_checksum:
        return None
    return sorted(_tables(body, footer.name), key=lambda batch: batch.block)


def decode_removals(start: Buffer, footer: Footer) -> list[Batch] | None:
    """The removals at the start of a trailer's body, or None where one of their tables is damaged."""
    batches = list(_tables(start[: footer.removals_bytes], footer.name))
    found_bytes = sum(table_bytes(entry.key for entry in batch.entries) for batch in batches)
    return batches if found_bytes == footer.removals_bytes else None


def _tables(body: Buffer, name: SegmentName) -> Iterator[Batch]:
    while len(body):
        batch = decode_table(body, name.store, name.segment, name.generation)
        if batch is None:
            return
        yield batch
        body = body[table_bytes(entry.key for entry in batch.entries) :]


def table_bytes(keys: Iterable[ChunkKey]) -> int:
    """The size of a table of these keys."""
    return _TABLE.size + _CHECKSUM.size + sum(ENTRY_BYTES + len(key) for key in keys)


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
        position += ENTRY_BYTES
        yield Entry(lines[position : position + key_bytes], block, length, checksum, stored_s)
        position += key_bytes


def table_blocks_in(data: Buffer) -> int:
    """How many blocks the table at the start of `data` says it has, 0 where there is no table."""
    if bytes(data[: len(_TABLE_MAGIC)]) != _TABLE_MAGIC:
        return 0
    return int(_TABLE.unpack_from(data)[5])
