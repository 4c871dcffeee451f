"""One segment file, read and written in the format of `codec.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ...base import Buffer
from ..io.blocks import BLOCK_BYTES, PIECE_BYTES, blocks_of, read_all, scratch, write_all
from ..io.files import Files
from .checksum import ChunkChecksum
from .codec import (
    FIRST_BLOCK,
    Batch,
    Entry,
    Footer,
    Header,
    SegmentName,
    decode_body,
    decode_removals,
    decode_table,
    encode_trailer,
    table_blocks_in,
)

BAD_BLOCKS_MAX = 16  # of one sweep: a bad place is a few blocks; more is a drive that fails


def reads_right(files: Files, fd: int, entry: Entry, checksum: ChunkChecksum) -> bool:
    """Whether the chunk can be read and has the entry's checksum."""
    memory = scratch(entry.length_bytes)
    try:
        done = read_all(files, fd, [memory], entry.block * BLOCK_BYTES)
    except OSError:
        return False
    payload = memory[: entry.length_bytes]
    return done >= entry.length_bytes and checksum.of(entry.key, payload) == entry.checksum


def right_entries(
    files: Files, fd: int, entries: Sequence[Entry], checksum: ChunkChecksum
) -> Iterator[Entry]:
    """Those whose chunks can be read and have their checksums; neighbours are read together."""
    for group in _neighbours(entries):
        first, last = group[0].block, group[-1].block + group[-1].blocks
        memory = scratch((last - first) * BLOCK_BYTES)
        try:
            done = read_all(files, fd, [memory], first * BLOCK_BYTES)
        except OSError:
            yield from (entry for entry in group if reads_right(files, fd, entry, checksum))
            continue
        for entry in group:
            start = (entry.block - first) * BLOCK_BYTES
            payload = memory[start : start + entry.length_bytes]
            is_there = done >= start + entry.length_bytes
            if is_there and checksum.of(entry.key, payload) == entry.checksum:
                yield entry


def _neighbours(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Groups of entries side by side, of one piece each."""
    group: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.block):
        end = entry.block + entry.blocks
        if group and (
            entry.block > group[-1].block + group[-1].blocks
            or (end - group[0].block) * BLOCK_BYTES > PIECE_BYTES
        ):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


class BadBlocks:
    """Counts the blocks that one sweep cannot read. A refusal can take seconds, so few are allowed."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.count += 1
            if self.count > BAD_BLOCKS_MAX:
                raise


class SegmentFile:
    """Blocking access to one segment's metadata through an open file; one thread at a time."""

    def __init__(self, files: Files, fd: int, name: SegmentName, size_bytes: int) -> None:
        self.files = files
        self.fd = fd
        self.name = name
        self.size_blocks = size_bytes // BLOCK_BYTES

    def write_header(self, opened: int) -> None:
        """Begin this life of the file: once it is synced, no table of an earlier one counts."""
        self._write(0, Header(self.name, opened).encode())

    def read_header(self) -> Header | None:
        return Header.decode(self._read(0, 1))

    def write_table(self, batch: Batch) -> bytes:
        """Write the table to its place; returns its bytes, as the trailer repeats them."""
        table = batch.encode()
        self._write(batch.block, table)
        return table

    def write_trailer(self, tables: Sequence[bytes]) -> None:
        """Write the tables again at the end, durably; every chunk that they name was synced before."""
        self._write(*encode_trailer(self.name, tables, self.size_blocks))
        self.sync()

    def sync(self) -> None:
        """Make everything that was written so far durable."""
        self.files.sync_data(self.fd)

    def read_footer(self) -> Footer | None:
        """The footer, whatever life of the file it is of; None where it is damaged or another store's."""
        footer = Footer.decode(self._read(self.size_blocks - 1, 1))
        return footer if footer is not None and footer.name[:2] == self.name[:2] else None

    def read_removals(self, footer: Footer) -> list[Batch] | None:
        """The removals of a sealed segment, without its other tables; None where they are damaged."""
        if not footer.removals_bytes:
            return []
        return decode_removals(self._read(footer.block, blocks_of(footer.removals_bytes)), footer)

    def unseal(self) -> None:
        """Make this life's trailer invalid, if it has one: its writer died before the index knew of it.

        What is appended from here on is in no trailer, and one that is valid is believed to list everything.
        """
        footer = self.read_footer()
        if footer is not None and footer.name == self.name:
            self._write(self.size_blocks - 1, bytes(BLOCK_BYTES))
            self.sync()

    def read_trailer(self) -> list[Batch] | None:
        """The batches of a sealed segment, or None where the footer is not this life's or is damaged."""
        footer = Footer.decode(self._read(self.size_blocks - 1, 1))
        if footer is None or footer.name != self.name:
            return None
        body = self._read(footer.block, blocks_of(footer.body_bytes))[: footer.body_bytes]
        return decode_body(body, footer)

    def sweep(
        self, end_block: int | None = None, *, any_life: bool = False, bad: BadBlocks | None = None
    ) -> Iterator[Batch]:
        """Every batch before `end_block`, found by its table, in the order of place.

        Steps over tables that cannot be read; `bad` has counted them.

        Raises:
            OSError: more than `BAD_BLOCKS_MAX` blocks cannot be read.
        """
        end = self.size_blocks if end_block is None else end_block
        generation = None if any_life else self.name.generation
        block, bad = FIRST_BLOCK, bad or BadBlocks()
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
                if table_blocks_in(window[i * BLOCK_BYTES :]):
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
        blocks = table_blocks_in(first)
        if not 0 < blocks <= self.size_blocks - block:
            return None
        data = first if blocks == 1 else self._read(block, blocks)
        batch = decode_table(data, self.name.store, self.name.segment, generation)
        return batch if batch is not None and batch.block == block else None

    def _write(self, block: int, data: bytes) -> None:
        memory = scratch(len(data))
        memory[: len(data)] = data
        write_all(self.files, self.fd, [memory], block * BLOCK_BYTES)

    def _read(self, block: int, count: int) -> Buffer:
        """`count` blocks; zeroes where the file is shorter."""
        memory = scratch(count * BLOCK_BYTES)
        read_all(self.files, self.fd, [memory], block * BLOCK_BYTES)
        return memory
