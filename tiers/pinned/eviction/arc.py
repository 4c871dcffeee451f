"""ARC: recency and frequency, balanced by what comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from ...base import ChunkKey
from .base import Evictable, PromptId
from .lines import Chunks, Lines
from .sweep import Sweep


class ArcPolicy:
    """Adaptive replacement cache (Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement
    Cache", FAST 2003).

    Two lists of lines: chunks used once since they came, and chunks used again. A ghost that comes back
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
        self._once = Lines()
        self._again = Lines()
        self._once_ghosts: OrderedDict[ChunkKey, None] = OrderedDict()
        self._again_ghosts: OrderedDict[ChunkKey, None] = OrderedDict()

    def arrive(self, prompt: PromptId) -> None:
        self._once.arrive(prompt)
        self._again.arrive(prompt)

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self)
        once, again = self._once.line(prompt), self._again.line(prompt)
        for key, position in zip(keys, positions, strict=True):
            if key in self._once_ghosts:
                self._adapt(max(1, len(self._again_ghosts) // len(self._once_ghosts)))
                del self._once_ghosts[key]
                self._again.add(again, [(key, position)])
            elif key in self._again_ghosts:
                self._adapt(-max(1, len(self._once_ghosts) // len(self._again_ghosts)))
                del self._again_ghosts[key]
                self._again.add(again, [(key, position)])
            else:
                self._once.add(once, [(key, position)])
        assert len(self) == count_before + len(keys), "a chunk became resident twice"
        self._trim_ghosts()

    def _leave(self, keys: list[ChunkKey], ghosts: OrderedDict[ChunkKey, None]) -> list[ChunkKey]:
        ghosts.update(dict.fromkeys(keys))
        return keys

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
        once, again = self._once.arrive(prompt), self._again.arrive(prompt)
        for key, position in zip(keys, positions, strict=True):
            line = self._once.line_of.get(key)
            if line is once:
                once.place(key, position)
            elif line is not None:
                self._once.remove(key)
                self._again.add(again, [(key, position)])
            elif key in self._again:
                self._again.use(again, [(key, position)])

    def remove(self, key: ChunkKey) -> None:
        self._once.remove(key)
        self._again.remove(key)
        self._once_ghosts.pop(key, None)
        self._again_ghosts.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        once, again = Sweep(self._once, evictable, spare), Sweep(self._again, evictable, spare)
        victims: list[ChunkKey] = []
        while len(victims) < count:
            once_line, again_line = once.oldest(), again.oldest()
            wanted = count - len(victims)
            surplus = len(self._once) - self._once_target_chunks
            if once_line is not None and (surplus > 0 or again_line is None):
                least = min(wanted, surplus) if again_line is not None else wanted
                victims += self._leave(once.take(once_line, least), self._once_ghosts)
            elif again_line is not None:
                victims += self._leave(again.take(again_line, wanted), self._again_ghosts)
            else:
                break
        victims += self._leave(once.take_behind_tails(count - len(victims)), self._once_ghosts)
        victims += self._leave(again.take_behind_tails(count - len(victims)), self._again_ghosts)
        once.end()
        again.end()
        self._trim_ghosts()
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return Chunks(self._once.chunks(prompt), self._again.chunks(prompt))

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, key: object) -> bool:
        return key in self._once or key in self._again

    def check(self) -> None:
        parts = (self._once.line_of, self._again.line_of, self._once_ghosts, self._again_ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._once_ghosts) + len(self._again_ghosts) <= self._capacity_chunks, "too many ghosts"
        assert 0 <= self._once_target_chunks <= self._capacity_chunks, "the target left its range"
        self._once.check()
        self._again.check()
