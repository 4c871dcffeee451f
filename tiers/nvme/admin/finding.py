"""What a check of a store can find wrong, and how it reports that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ...base import ChunkKey


class Kind(StrEnum):
    """The kinds of damage, in the order of repair: repairing one may leave some of the later ones."""

    INDEX = "index"  # it is lost, torn or another store's
    ORPHAN = "orphan"  # a segment file without a record
    LOST_FILE = "lost file"  # a record without a segment file
    HEADER = "header"  # a segment that does not begin with its own header
    TRAILER = "trailer"  # a sealed segment without its trailer
    PLACE = "place"  # a chunk that lies in no segment that is in force
    TABLE = "table"  # a chunk that no table of its segment names as the index does
    CONTENT = "content"  # a chunk that cannot be read or fails its checksum
    SUMS = "sums"  # a record that counts other than what is there


class Where(NamedTuple):
    """The place that a finding is about; what does not apply is zero or empty.

    The generation is part of it: the next life of the same segment file is another place.
    """

    segment: int = 0
    generation: int = 0
    block: int = 0
    scope: int = 0
    key: ChunkKey = b""
    namespace: bytes = b""

    def __str__(self) -> str:
        if self.key:
            return self.key.hex()
        return self.namespace.hex() if self.namespace else str(self.segment)


class Finding(NamedTuple):
    """One thing that is wrong, with a sentence for people."""

    kind: Kind
    where: Where
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    Attributes:
        findings: what is wrong.
        chunks, segments: how many there are.
        repaired: how many of the findings were repaired.
    """

    findings: tuple[Finding, ...]
    chunks: int
    segments: int
    repaired: int = 0
