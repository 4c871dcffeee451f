"""S3-FIFO: a small queue for new chunks keeps what is used once out of the main one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import islice, takewhile
from typing import NamedTuple

from ...base import ChunkKey
from .base import Evictable, PromptId
from .lines import Chunks, Line, Lines
from .sweep import Sweep

SMALL_SHARE = 0.1  # of the capacity: the share that Yang et al. recommend
USES_MAX = 3  # two bits: more uses than this do not tell chunks apart

REPRIEVES_MAX = 64  # chunks a victim: a sweep of a large tier in which all were used would stall its owner


class S3FifoPolicy:
    """S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, "FIFO Queues are All You Need for Cache Eviction",
    SOSP 2023).

    Two FIFO queues of lines. A new chunk enters the small one; if nobody used it by the time it reaches the
    end, it leaves and its ghost stays. A used one moves to the main queue, which gives each chunk
    another round for each use. A chunk whose ghost is still there enters the main queue at once.

    Three choices are ours. One use is enough to leave the small queue for the main one, and there are as many
    ghosts as chunks: that hits more often on the conversation trace (tests/data). A chunk that another
    prompt uses joins that prompt's line, so it waits in its queue as long as the rest of its prefix.
    """

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._capacity_chunks = capacity_chunks
        self._small_target_chunks = max(1, int(capacity_chunks * SMALL_SHARE))
        self._small = Lines()
        self._main = Lines()
        self._round = Lines()  # what of the oldest line of main has earned another round already
        self._uses: dict[ChunkKey, int] = {}  # 1 to USES_MAX, of those that were used
        self._ghosts: OrderedDict[ChunkKey, None] = OrderedDict()

    def arrive(self, prompt: PromptId) -> None:
        self._small.arrive(prompt)
        self._main.arrive(prompt)
        if self._round.chunks(prompt):
            self._end_round()

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self)
        new: list[tuple[ChunkKey, int]] = []
        back: list[tuple[ChunkKey, int]] = []
        for key, position in zip(keys, positions, strict=True):
            (back if key in self._ghosts else new).append((key, position))
        for key, _ in back:
            del self._ghosts[key]
        self._small.add(self._small.line(prompt), new)
        self._main.add(self._main.line(prompt), back)
        assert len(self) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        self.arrive(prompt)
        for key, position in zip(keys, positions, strict=True):
            lines = self._small if key in self._small else self._main
            own, line = lines.line(prompt), lines.line_of.get(key) or self._round.line_of.get(key)
            if line is None:
                continue
            if line is not own:
                self._uses[key] = min(USES_MAX, self._uses.get(key, 0) + 1)
                self._round.remove(key)
                lines.remove(key)
                lines.add(own, [(key, position)])
            else:
                own.place(key, position)

    def remove(self, key: ChunkKey) -> None:
        for lines in (self._small, self._main, self._round):
            lines.remove(key)
        self._uses.pop(key, None)
        self._ghosts.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        small, main = Sweep(self._small, evictable, spare), Sweep(self._main, evictable, spare)
        victims: list[ChunkKey] = []
        reprieves_left_chunks = count * REPRIEVES_MAX
        while len(victims) < count and (turn := self._turn(small, main)):
            line = turn.line
            line.sort()
            if reprieves_left_chunks and next(reversed(line.chunks)) in self._uses:
                reprieves_left_chunks -= 1
                self._reprieve(line, *line.chunks.popitem())
            else:
                run_chunks = self._unused_at_tail(line, min(turn.chunks, count - len(victims)))
                victims += self._leave(turn.sweep.take(line, run_chunks), is_new=turn.sweep is small)
        victims += self._leave(small.take_behind_tails(count - len(victims)), is_new=True)
        victims += self._leave(main.take_behind_tails(count - len(victims)), is_new=False)
        small.end()
        main.end()
        while len(self._ghosts) > self._capacity_chunks:
            self._ghosts.popitem(last=False)
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return Chunks(*(lines.chunks(prompt) for lines in (self._small, self._main, self._round)))

    def __len__(self) -> int:
        return len(self._small) + len(self._main) + len(self._round)

    def __contains__(self, key: object) -> bool:
        return key in self._small or key in self._main or key in self._round

    def check(self) -> None:
        parts = (self._small.line_of, self._main.line_of, self._round.line_of, self._ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._ghosts) <= self._capacity_chunks, "too many ghosts"
        assert all(key in self for key in self._uses), "uses of a chunk that left"
        assert all(0 < uses <= USES_MAX for uses in self._uses.values()), "a use count left its range"
        for lines in (self._small, self._main, self._round):
            lines.check()

    def _turn(self, small: Sweep, main: Sweep) -> _Turn | None:
        """Whose line loses its tail next, and by how many chunks before one should ask again."""
        small_line, main_line = small.oldest(), main.oldest()
        if self._round and not (main_line and self._round.chunks(main_line.prompt)):
            self._end_round()
            main_line = main.oldest()
        surplus_chunks = len(self._small) - self._small_target_chunks + 1
        if small_line is not None and (main_line is None or surplus_chunks > 0):
            return _Turn(small, small_line, surplus_chunks if main_line else len(small_line.chunks))
        return None if main_line is None else _Turn(main, main_line, len(main_line.chunks))

    def _reprieve(self, line: Line, key: ChunkKey, position: int) -> None:
        """Let a used chunk that was taken off its line live on: in main, or there for another round."""
        uses = self._uses.pop(key) - 1
        if self._small.line_of.pop(key, None) is not None:
            self._add_to_main(line.prompt, [(key, position)])
            return
        del self._main.line_of[key]
        if not self._round:
            self._round = Lines()
        self._round.add(self._round.line(line.prompt), [(key, position)])
        if uses:
            self._uses[key] = uses

    def _end_round(self) -> None:
        ended, self._round = self._round, Lines()
        for line in ended:
            self._add_to_main(line.prompt, line.chunks.items())

    def _add_to_main(self, prompt: PromptId, placed: Collection[tuple[ChunkKey, int]]) -> None:
        self._main.add(self._main.arrive(prompt), placed)
        if self._round.chunks(prompt):
            self._end_round()

    def _unused_at_tail(self, line: Line, chunks: int) -> int:
        """How many chunks at the tail nobody used, up to so many; one where not even one is such."""
        unused = takewhile(lambda key: key not in self._uses, islice(reversed(line.chunks), chunks))
        return sum(1 for _ in unused) or 1

    def _leave(self, keys: list[ChunkKey], *, is_new: bool) -> list[ChunkKey]:
        for key in keys:
            self._uses.pop(key, None)
        if is_new:
            self._ghosts.update(dict.fromkeys(keys))
        return keys


class _Turn(NamedTuple):
    sweep: Sweep
    line: Line
    chunks: int
