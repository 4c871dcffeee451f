"""Chunks on their way through the log: whose they are, what a segment holds, what was removed."""

from __future__ import annotations

from typing import NamedTuple

from ...base import ChunkKey
from ..format.checksum import ChunkChecksum
from ..format.codec import Entry
from ..index.records import Extent


class Target(NamedTuple):
    """The namespace that chunks are appended to."""

    namespace: bytes
    scope: int
    checksum: ChunkChecksum


class Live(NamedTuple):
    """A chunk in a segment that is being reclaimed; `found` unless its epoch is over."""

    namespace: bytes
    scope: int
    key: ChunkKey
    extent: Extent
    found: bool = True


class Removals(NamedTuple):
    """Keys of one namespace that were removed: a rebuild leaves out their chunks from before `order`."""

    namespace: bytes
    scope: int
    order: int
    entries: tuple[Entry, ...]

    @property
    def target(self) -> Target:
        return Target(self.namespace, self.scope, ChunkChecksum(self.namespace))
