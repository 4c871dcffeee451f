"""A search for victims among lines: the oldest line first, and of each line the tail."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ...base import ChunkKey
from .base import Evictable, PromptId
from .lines import Line, Lines


class Sweep:
    """One search through one list of lines; `end` must follow.

    A line whose tail is in use is passed over. After the sweep it is among the youngest, so that the next
    one does not meet it first.

    Args:
        spare: the prompt whose line is left alone.
    """

    __slots__ = ("_evictable", "_lines", "_passed", "_spare")

    def __init__(self, lines: Lines, evictable: Evictable, spare: PromptId | None) -> None:
        self._lines = lines
        self._evictable = evictable
        self._spare = spare
        self._passed: list[Line] = []

    def oldest(self) -> Line | None:
        """The line that loses its tail next; None where every line was passed over."""
        return self._lines.oldest(self._spare)

    def take(self, line: Line, count: int) -> list[ChunkKey]:
        """Take up to `count` victims from the tail of the oldest line, fewer where it ends or is in use."""
        line.sort()
        chunks, line_of, evictable = line.chunks, self._lines.line_of, self._evictable
        victims: list[ChunkKey] = []
        while chunks and len(victims) < count:
            key, position = chunks.popitem()
            if not evictable(key):
                chunks[key] = position
                self.skip(line)
                break
            del line_of[key]
            victims.append(key)
        return victims

    def skip(self, line: Line) -> None:
        """Pass a line over."""
        self._lines.set_aside(line)
        self._passed.append(line)

    def take_behind_tails(self, count: int) -> list[ChunkKey]:
        """Take what is idle before a tail in use, the nearest to a tail first: there is nothing else left."""
        if count <= 0 or not self._passed:
            return []
        idle = (key for line in self._passed for key in self._idle_of(line))
        victims = list(islice(idle, count))
        for key in victims:
            self._lines.remove(key)
        return victims

    def end(self) -> None:
        """Put back what was passed over."""
        for line in self._passed:
            self._lines.put_back(line)

    def _idle_of(self, line: Line) -> Iterator[ChunkKey]:
        return filter(self._evictable, reversed(line.chunks))
