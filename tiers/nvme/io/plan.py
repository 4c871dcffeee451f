"""Plans what is moved in one call: small chunks together, a large one in parts. Pure: it makes no call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from ...base import Buffer, ChunkKey
from .blocks import IOV_MAX, PIECE_BYTES, blocks_of, part_bytes_max
from .files import Files
from .parts import ReadPart, WritePart, read_parts, write_parts
from .pieces import Checksum, P, Place, ReadPiece, Source, Wanted, WritePiece

GAP_BLOCKS_MAX = 4  # read over up to 16 KiB between neighbours: cheaper than a call of its own
PIECE_CHUNKS_MAX = IOV_MAX // 3  # each chunk is at most three parts of a call: gap, whole blocks, tail

T = TypeVar("T")

Write: TypeAlias = WritePiece | WritePart
Read: TypeAlias = ReadPiece[P] | ReadPart[P]


def plan_writes(
    files: Files,
    fd: int,
    checksum: Checksum,
    block: int,
    chunks: Sequence[tuple[ChunkKey, Buffer]],
) -> list[Write]:
    """Split chunks that go side by side from `block` on into pieces and parts."""
    pieces: list[Write] = []
    most_bytes = part_bytes_max(sum(len(buffer) for _, buffer in chunks))
    for group in _grouped(chunks, lambda chunk: len(chunk[1])):
        if len(group[0][1]) > most_bytes:
            pieces += write_parts(files, fd, checksum, block, group[0], most_bytes)
        else:
            pieces.append(WritePiece(files, fd, checksum, block, group))
        block += sum(blocks_of(len(buffer)) for _, buffer in group)
    return pieces


def plan_reads(
    files: Files, source: Source, checksum: Checksum, wanted: Sequence[Wanted[P]]
) -> list[Read[P]]:
    """Sort by place, merge neighbours, split into pieces and parts."""
    ordered = sorted(wanted, key=lambda chunk: (chunk.place.segment, chunk.place.block))
    pieces: list[Read[P]] = []
    most_bytes = part_bytes_max(sum(chunk.place.length_bytes for chunk in wanted))
    for run in _runs(ordered):
        for group in _grouped(run, lambda chunk: chunk.place.length_bytes):
            if group[0].place.length_bytes > most_bytes:
                pieces += read_parts(files, source, checksum, group[0], most_bytes)
            else:
                pieces.append(ReadPiece(files, source, checksum, group))
    return pieces


def _runs(ordered: Sequence[Wanted[P]]) -> Iterator[list[Wanted[P]]]:
    run: list[Wanted[P]] = []
    for chunk in ordered:
        if run and not _neighbours(run[-1].place, chunk.place):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _neighbours(first: Place, second: Place) -> bool:
    gap = second.block - first.block - blocks_of(first.length_bytes)
    same = (first.segment, first.generation) == (second.segment, second.generation)
    return same and 0 <= gap <= GAP_BLOCKS_MAX


def _grouped(items: Sequence[T], size_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut a sequence where a piece is full; a chunk larger than that stands alone."""
    group: list[T] = []
    group_bytes = 0
    for item in items:
        if group and (group_bytes + size_bytes(item) > PIECE_BYTES or len(group) == PIECE_CHUNKS_MAX):
            yield group
            group, group_bytes = [], 0
        group.append(item)
        group_bytes += size_bytes(item)
    if group:
        yield group
