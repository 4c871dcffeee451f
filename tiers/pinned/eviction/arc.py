"""ARC: recency and frequency, balanced by what comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from ...base import ChunkKey
from .base import Evictable, PromptId


class ArcPolicy:
    """Adaptive replacement cache (Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement
    Cache", FAST 2003).

    Two LRU lists: chunks used once since they came, and chunks used again. A ghost that comes back
    says which of the two was cut too short and moves the target size of the first. The step is rounded
    down to whole chunks: on the conversation trace (tests/data) that hits a little more often.

    The paper adapts and then evicts, for one page; here an owner makes room for a whole batch before
    it inserts it, so a batch adapts the target for the next one.
    """

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._capacity_chunks = capacity_chunks
        self._once_target_chunks = 0  # the paper's p
        # The paper's T1, T2, B1 and B2; in each the next one to go is first.
        self._once: OrderedDict[ChunkKey, None] = OrderedDict()
        self._again: OrderedDict[ChunkKey, None] = OrderedDict()
        self._once_ghosts: OrderedDict[ChunkKey, None] = OrderedDict()
        self._again_ghosts: OrderedDict[ChunkKey, None] = OrderedDict()

    def arrive(self, prompt: PromptId) -> None:
        """Nothing: a line is a batch."""

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self)
        for key in reversed(keys):
            if key in self._once_ghosts:
                self._adapt(max(1, len(self._again_ghosts) // len(self._once_ghosts)))
                del self._once_ghosts[key]
                self._again[key] = None
            elif key in self._again_ghosts:
                self._adapt(-max(1, len(self._once_ghosts) // len(self._again_ghosts)))
                del self._again_ghosts[key]
                self._again[key] = None
            else:
                self._once[key] = None
        assert len(self) == count_before + len(keys), "a chunk became resident twice"
        self._trim_ghosts()

    def _adapt(self, step_chunks: int) -> None:
        self._once_target_chunks = min(max(0, self._once_target_chunks + step_chunks), self._capacity_chunks)

    def _trim_ghosts(self) -> None:
        """Keep as many ghosts as the tier has chunks, and with `once` no longer than the tier."""
        once_room_chunks = self._capacity_chunks - len(self._once)
        while self._once_ghosts and len(self._once_ghosts) > once_room_chunks:
            self._once_ghosts.popitem(last=False)
        while len(self._once_ghosts) + len(self._again_ghosts) > self._capacity_chunks:
            self._again_ghosts.popitem(last=False)

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        for key in reversed(keys):
            if key in self._again:
                self._again.move_to_end(key)
            elif key in self._once:
                del self._once[key]
                self._again[key] = None

    def remove(self, key: ChunkKey) -> None:
        for part in (self._once, self._again, self._once_ghosts, self._again_ghosts):
            part.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        victims: list[ChunkKey] = []
        passed_once: list[ChunkKey] = []
        passed_again: list[ChunkKey] = []
        while len(victims) < count and (self._once or self._again):
            once_is_long = len(self._once) + len(passed_once) > self._once_target_chunks
            from_once = bool(self._once) and (once_is_long or not self._again)
            key, _ = (self._once if from_once else self._again).popitem(last=False)
            if not evictable(key):
                (passed_once if from_once else passed_again).append(key)
                continue
            victims.append(key)
            (self._once_ghosts if from_once else self._again_ghosts)[key] = None
        self._once.update(dict.fromkeys(passed_once))
        self._again.update(dict.fromkeys(passed_again))
        self._trim_ghosts()
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return ()

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, key: object) -> bool:
        return key in self._once or key in self._again

    def check(self) -> None:
        parts = (self._once, self._again, self._once_ghosts, self._again_ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._once_ghosts) + len(self._again_ghosts) <= self._capacity_chunks, "too many ghosts"
        assert 0 <= self._once_target_chunks <= self._capacity_chunks, "the target left its range"
