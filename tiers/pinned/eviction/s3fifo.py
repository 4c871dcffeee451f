"""S3-FIFO: a small queue for new chunks keeps what is used once out of the main one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from ...base import ChunkKey
from .base import Evictable, PromptId

SMALL_SHARE = 0.1  # of the capacity: the share that Yang et al. recommend
USES_MAX = 3  # two bits: more uses than this do not tell chunks apart

REPRIEVES_MAX = 64  # chunks a victim: a sweep of a large tier in which all were used would stall its owner


class S3FifoPolicy:
    """S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, "FIFO Queues are All You Need for Cache Eviction",
    SOSP 2023).

    Three FIFO queues. A new chunk enters the small one; if nobody used it by the time it reaches the
    end, it leaves and its ghost stays. A used one moves to the main queue, which gives each chunk
    another round for each use. A chunk whose ghost is still there enters the main queue at once.

    Two choices are ours, because they hit more often on the conversation trace (tests/data): one use is
    enough to leave the small queue for the main one, and there are as many ghosts as chunks.
    """

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._capacity_chunks = capacity_chunks
        self._small_target_chunks = max(1, int(capacity_chunks * SMALL_SHARE))
        # Keys with their uses, 0 to USES_MAX; the next one to leave is first.
        self._small: OrderedDict[ChunkKey, int] = OrderedDict()
        self._main: OrderedDict[ChunkKey, int] = OrderedDict()
        self._ghosts: OrderedDict[ChunkKey, None] = OrderedDict()

    def arrive(self, prompt: PromptId) -> None:
        """Nothing: a line is a batch."""

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self)
        for key in reversed(keys):
            if key in self._ghosts:
                del self._ghosts[key]
                self._main[key] = 0
            else:
                self._small[key] = 0
        assert len(self) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        for key in dict.fromkeys(keys):
            queue = self._main if key in self._main else self._small
            uses = queue.get(key, USES_MAX)
            if uses < USES_MAX:
                queue[key] = uses + 1

    def remove(self, key: ChunkKey) -> None:
        for part in (self._small, self._main, self._ghosts):
            part.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        victims: list[ChunkKey] = []
        passed_small: list[tuple[ChunkKey, int]] = []
        passed_main: list[tuple[ChunkKey, int]] = []
        reprieves_left_chunks = count * REPRIEVES_MAX
        while len(victims) < count and (self._small or self._main):
            small_chunks = len(self._small) + len(passed_small)
            from_small = bool(self._small) and (small_chunks >= self._small_target_chunks or not self._main)
            key, uses = (self._small if from_small else self._main).popitem(last=False)
            if uses and reprieves_left_chunks:
                reprieves_left_chunks -= 1
                self._main[key] = 0 if from_small else uses - 1
            elif not evictable(key):
                (passed_small if from_small else passed_main).append((key, uses))
            else:
                victims.append(key)
                if from_small:
                    self._ghosts[key] = None
        self._small.update(passed_small)
        self._main.update(passed_main)
        while len(self._ghosts) > self._capacity_chunks:
            self._ghosts.popitem(last=False)
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return ()

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, key: object) -> bool:
        return key in self._small or key in self._main

    def check(self) -> None:
        parts = (self._small, self._main, self._ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._ghosts) <= self._capacity_chunks, "too many ghosts"
        uses = [*self._small.values(), *self._main.values()]
        assert all(0 <= count <= USES_MAX for count in uses), "a use count left its range"
