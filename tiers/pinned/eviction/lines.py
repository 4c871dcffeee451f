"""Lines of chunks: what prompts hold, oldest prompt first, and within a prompt head first.

A policy's list is a list of lines. To use or to extend a line moves the whole line in one step, so a prompt
that comes in over a hundred steps costs no more than one that comes at once, and its head is never older
than its tail.

A line may be empty: the owner says that a prompt arrives before its chunks are there, and that is the moment
which counts. An empty line goes when it is met as the oldest. Should its chunks come after that, they are
the oldest again, which is what they would have been.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from operator import itemgetter

from ...base import ChunkKey
from .base import PromptId

EMPTY_LINES_MAX = 1024  # beside one a chunk: more are swept out together, which costs each of them little

_position = itemgetter(1)


class Line:
    """The chunks of one prompt in one list of a policy.

    Attributes:
        chunks: positions by key. In order of position only where `is_sorted`.
        last: no position so far is above it, as long as the line is sorted.
        stamp: for the policy's own use.
    """

    __slots__ = ("chunks", "is_sorted", "last", "prompt", "stamp")

    def __init__(self, prompt: PromptId, stamp: int = 0) -> None:
        self.prompt = prompt
        self.chunks: dict[ChunkKey, int] = {}
        self.is_sorted = True
        self.stamp = stamp
        self.last = 0

    def place(self, key: ChunkKey, position: int) -> None:
        """Give a chunk of this line its place."""
        if self.chunks[key] != position:
            self.chunks[key] = position
            self.is_sorted = False

    def sort(self) -> None:
        """Put the tail last, where it is not."""
        if not self.is_sorted:  # runs of a few steps each, which sorting merges
            self.chunks = dict(sorted(self.chunks.items(), key=_position))
            self.last = next(reversed(self.chunks.values()), 0)
            self.is_sorted = True


class Chunks(Collection[ChunkKey]):
    """What a prompt holds in several lists of a policy; it is not copied, and its length is known."""

    def __init__(self, *parts: Collection[ChunkKey]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[ChunkKey]:
        return chain.from_iterable(self._parts)

    def __contains__(self, key: object) -> bool:
        return any(key in part for part in self._parts)


class Lines:
    """Lines, the oldest first; a chunk is in one of them.

    Attributes:
        line_of: the line of each chunk; for reading.
    """

    def __init__(self) -> None:
        self.line_of: dict[ChunkKey, Line] = {}
        self._by_prompt: OrderedDict[PromptId, Line] = OrderedDict()

    def __len__(self) -> int:
        """The chunks in all lines."""
        return len(self.line_of)

    def __contains__(self, key: object) -> bool:
        return key in self.line_of

    def __iter__(self) -> Iterator[Line]:
        return iter(self._by_prompt.values())

    def arrive(self, prompt: PromptId) -> Line:
        """Make the prompt's line the youngest, and return it."""
        line = self._by_prompt.get(prompt)
        if line is None:
            self._bound_empty()
            line = self._by_prompt[prompt] = Line(prompt)
        else:
            self._by_prompt.move_to_end(prompt)
        return line

    def line(self, prompt: PromptId) -> Line:
        """The prompt's line; where it is gone, a new one that is the oldest."""
        line = self._by_prompt.get(prompt)
        if line is None:
            line = self._by_prompt[prompt] = Line(prompt)
            self._by_prompt.move_to_end(prompt, last=False)
        return line

    def chunks(self, prompt: PromptId) -> Collection[ChunkKey]:
        """The chunks of the prompt's line."""
        line = self._by_prompt.get(prompt)
        return () if line is None else line.chunks

    def add(self, line: Line, placed: Iterable[tuple[ChunkKey, int]]) -> None:
        """Put chunks that are in no line into this one, each with its position."""
        line_of, chunks, last = self.line_of, line.chunks, line.last
        for key, position in placed:
            if position < last:
                line.is_sorted = False
            else:
                last = position
            chunks[key] = position
            line_of[key] = line
        line.last = last

    def use(self, line: Line, placed: Iterable[tuple[ChunkKey, int]]) -> None:
        """Put those chunks that are in a line into this one, each with its position."""
        line_of = self.line_of
        joined: dict[ChunkKey, int] = {}
        for key, position in placed:
            other = line_of.get(key)
            if other is not None and other is not line:
                del other.chunks[key]
                line_of[key] = line
                joined[key] = position
            elif key in joined:  # named twice
                joined[key] = position
            elif other is not None:
                line.place(key, position)
        self.add(line, joined.items())

    def remove(self, key: ChunkKey) -> None:
        """Take a chunk out of its line, if it is in one."""
        line = self.line_of.pop(key, None)
        if line is not None:
            del line.chunks[key]

    def oldest(self, spare: PromptId | None) -> Line | None:
        """The oldest line with a chunk in it; the spared prompt's is in use, and becomes the youngest."""
        by_prompt, is_spared = self._by_prompt, False
        while by_prompt:
            prompt, line = next(iter(by_prompt.items()))
            if not line.chunks:
                del by_prompt[prompt]
            elif prompt != spare:
                return line
            elif is_spared:
                return None
            else:
                by_prompt.move_to_end(prompt)
                is_spared = True
        return None

    def set_aside(self, line: Line) -> None:
        """Take a line out of the list, with its chunks, until `put_back`."""
        del self._by_prompt[line.prompt]

    def put_back(self, line: Line) -> None:
        """Make a line that was set aside the youngest, with what its prompt got meanwhile."""
        meanwhile = self._by_prompt.pop(line.prompt, None)
        self._by_prompt[line.prompt] = line
        if meanwhile is not None:
            self.add(line, meanwhile.chunks.items())

    def check(self) -> None:
        """Assert that each chunk is in one line, and that heads come before tails where that is said."""
        held = [key for line in self for key in line.chunks]
        assert len(held) == len(self.line_of) == len(set(held)), "a chunk is in no line, or in two"
        for prompt, line in self._by_prompt.items():
            assert line.prompt == prompt
            assert all(self.line_of[key] is line for key in line.chunks), "a chunk's line does not hold it"
            positions = list(line.chunks.values())
            assert not line.is_sorted or positions == sorted(positions), "a head stands behind its tail"
        assert len(self._by_prompt) <= 2 * len(self.line_of) + EMPTY_LINES_MAX + 1, "too many empty lines"

    def _bound_empty(self) -> None:
        """Keep the empty lines of prompts that came to nothing from piling up."""
        if len(self._by_prompt) > len(self.line_of) + EMPTY_LINES_MAX:
            self._by_prompt = OrderedDict(
                (prompt, line) for prompt, line in self._by_prompt.items() if line.chunks
            )
