"""Reuse: what was used again outlives what was used once, by as much as pays on the traffic at hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from zlib import crc32

from ...base import ChunkKey
from .base import Evictable, PromptId
from .lines import Chunks, Line, Lines
from .shadow import GHOST_CAPACITIES, Arm, Shadow, sampled_one_in
from .sweep import Sweep

# Found by search over public traces of chat and of coding agents: each wins on one of them.
ARMS = (Arm(1, 0), Arm(4, 4), Arm(64, 4), Arm(64, 0.5))
FIRST_ARM = 2  # the best on chat from the start

GHOSTS_MAX = 1 << 20  # some 200 MiB of memory; only tiers of more than a quarter as many chunks feel it

HALVED_CAPACITIES = 16  # accesses, in capacities of a shadow, after which its hits weigh half
LEAD_SHARE = 1.005  # an arm takes over when it leads by so much
LEAD_HITS = 8  # and by so many hits


class ReusePolicy:
    """Two lists of lines: chunks that were used once since they came, and chunks that were used again, or
    that came back soon after they left.

    The victim is the tail of the oldest line of one of the two: of that whose age is larger, in accesses
    since it was last used, the age of what was used once multiplied by a weight. How large the weight is,
    and what counts as soon, is chosen while it runs: a sample of the chunks goes through a small shadow of
    each choice, and the one whose shadow hits most often is taken.
    """

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._capacity_chunks = capacity_chunks
        self._once = Lines()
        self._again = Lines()
        self._ghosts: OrderedDict[ChunkKey, int] = OrderedDict()  # the number of each one's eviction
        self._ghosts_max = min(GHOST_CAPACITIES * capacity_chunks, GHOSTS_MAX)
        self._accesses = self._evictions = 0
        self._arm = ARMS[FIRST_ARM]
        one_in = sampled_one_in(capacity_chunks)
        self._sample_mask = one_in - 1
        shadow_chunks = max(1, capacity_chunks // one_in)
        self._shadows = [Shadow(shadow_chunks, arm) for arm in ARMS]
        self._chosen = self._shadows[FIRST_ARM]
        self._sampled = 0  # accesses since hits were halved
        self._halved_after = HALVED_CAPACITIES * shadow_chunks

    def arrive(self, prompt: PromptId) -> None:
        self._once.arrive(prompt).stamp = self._again.arrive(prompt).stamp = self._accesses

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self._once.line_of) + len(self._again.line_of)
        near = [key for key in keys if key in self._ghosts and self._comes_back_near(key)]
        again = dict.fromkeys(near)
        once: Iterable[tuple[ChunkKey, int]] = zip(keys, positions, strict=True)
        if again:
            placed = list(once)
            once = [one for one in placed if one[0] not in again]
            self._again.add(self._again.line(prompt), [one for one in placed if one[0] in again])
        self._once.add(self._once.line(prompt), once)
        count = len(self._once.line_of) + len(self._again.line_of)
        assert count == count_before + len(keys), "a chunk became resident twice"
        self._accessed(keys)

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        once, again = self._once.arrive(prompt), self._again.arrive(prompt)
        once_line_of, again_line_of = self._once.line_of, self._again.line_of
        used: dict[ChunkKey, int] = {}
        for key, position in zip(keys, positions, strict=True):
            line = once_line_of.get(key)
            if line is once:
                once.place(key, position)
            elif line is not None:
                del once_line_of[key], line.chunks[key]
                used[key] = position
            elif (line := again_line_of.get(key)) is again:
                again.place(key, position)
            elif line is not None:
                del again_line_of[key], line.chunks[key]
                used[key] = position
            elif key in used:
                used[key] = position
        self._again.add(again, used.items())
        self._accessed(used)
        once.stamp = again.stamp = self._accesses

    def remove(self, key: ChunkKey) -> None:
        self._once.remove(key)
        self._again.remove(key)
        self._ghosts.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        once, again = Sweep(self._once, evictable, spare), Sweep(self._again, evictable, spare)
        victims: list[ChunkKey] = []
        while len(victims) < count:
            once_line, again_line = once.oldest(), again.oldest()
            if once_line is not None and (again_line is None or self._is_older(once_line, again_line)):
                victims += once.take(once_line, count - len(victims))
            elif again_line is not None:
                victims += again.take(again_line, count - len(victims))
            else:
                break
        if len(victims) < count:
            victims += once.take_behind_tails(count - len(victims))
            victims += again.take_behind_tails(count - len(victims))
        once.end()
        again.end()
        self._leave(victims)
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return Chunks(self._once.chunks(prompt), self._again.chunks(prompt))

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, key: object) -> bool:
        return key in self._once or key in self._again

    def check(self) -> None:
        parts = (self._once.line_of, self._again.line_of, self._ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._ghosts) <= self._ghosts_max, "too many ghosts"
        self._once.check()
        self._again.check()

    def _is_older(self, once: Line, again: Line) -> bool:
        once_age, again_age = self._accesses - once.stamp, self._accesses - again.stamp
        return once_age * self._arm.once_weight >= again_age

    def _comes_back_near(self, ghost: ChunkKey) -> bool:
        since = self._evictions - self._ghosts.pop(ghost)
        return since < self._arm.near_capacities * self._capacity_chunks

    def _leave(self, victims: Sequence[ChunkKey]) -> None:
        for number, key in enumerate(victims, start=self._evictions + 1):
            self._ghosts[key] = number
        self._evictions += len(victims)
        while len(self._ghosts) > self._ghosts_max:
            self._ghosts.popitem(last=False)

    def _accessed(self, keys: Collection[ChunkKey]) -> None:
        self._accesses += len(keys)
        mask = self._sample_mask
        sample = [key for key in keys if not crc32(key) & mask]
        if sample:
            self._sample(sample)

    def _sample(self, keys: list[ChunkKey]) -> None:
        """Show the shadows what was used, and choose the arm of the best."""
        keys.reverse()
        for shadow in self._shadows:
            shadow.use(keys)
        self._sampled += len(keys)
        if self._sampled >= self._halved_after:
            self._sampled = 0
            for shadow in self._shadows:
                shadow.hits /= 2
        best = max(self._shadows, key=_hits)
        if best.hits >= self._chosen.hits * LEAD_SHARE + LEAD_HITS:
            self._chosen, self._arm = best, best.arm


_hits = attrgetter("hits")
