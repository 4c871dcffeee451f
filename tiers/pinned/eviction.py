"""Eviction policies: which chunk leaves a full tier next.

A policy holds keys and no bytes. Its owner tells it what became resident, what was used and what
left, and asks it for victims. Policies are pure: no I/O, no clock, no randomness, so a trace
replayed twice evicts the same chunks twice.

Batches are prefixes, head first. A prefix is of use only from its head, so a policy that has to
choose within one batch gives up the tail first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias

from ..base import ChunkKey

S3FIFO_SMALL_SHARE = 0.1  # of the capacity: the share that Yang et al. recommend
S3FIFO_USES_MAX = 3  # two bits: more uses than this do not tell chunks apart
S3FIFO_REPRIEVES_MAX = (
    64  # chunks a victim: a sweep of a large tier in which all were used would stall its owner
)

Evictable: TypeAlias = Callable[[ChunkKey], bool]
"""Says whether a chunk may leave now; False while a transfer pins it."""


class EvictionPolicy(Protocol):
    """The order in which chunks leave a tier.

    Threads: none; the owner calls under its own lock. A call takes about a microsecond a key or less,
    allocates no more than its result, and never fails. Capacity is the owner's to enforce: a policy
    knows it only to size its parts and its ghosts (keys that left, remembered without their bytes).
    """

    def insert(self, keys: Sequence[ChunkKey]) -> None:
        """Chunks became resident: a prefix or the rest of one, head first, no key resident before.

        Becoming resident is the first use, so an owner does not touch these chunks for the same
        request: each would count as used again, and arc would be no more than lru. It touches the head
        of their prefix after it inserts them, or the head would be older than the rest and leave first.
        """
        ...

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        """Chunks were used, head first; unknown keys are ignored, and a repeated key counts once."""
        ...

    def remove(self, key: ChunkKey) -> None:
        """Forget a chunk that left for another reason than eviction; an unknown key is ignored."""
        ...

    def evict(self, count: int, evictable: Evictable) -> list[ChunkKey]:
        """Choose up to `count` victims, and forget them; the first is the one least worth keeping.

        A chunk that is not evictable is in use: it is passed over, and takes its place anew as if it had
        just come there, so that the next call does not meet it first. The result is shorter than `count`
        only when no other resident chunk is evictable; a `count` below one asks for nothing.
        """
        ...

    def __len__(self) -> int:
        """Resident chunks."""
        ...

    def __contains__(self, key: object) -> bool:
        """Say whether the chunk is resident; ghosts are not."""
        ...

    def check(self) -> None:
        """Assert that the policy's parts agree with each other; for tests."""
        ...


class LruPolicy:
    """Least recently used first; within one batch the tail first."""

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._order: OrderedDict[ChunkKey, None] = OrderedDict()  # next victim first

    def insert(self, keys: Sequence[ChunkKey]) -> None:
        count_before = len(self._order)
        for key in reversed(keys):
            self._order[key] = None
        assert len(self._order) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        for key in reversed(keys):
            if key in self._order:
                self._order.move_to_end(key)

    def remove(self, key: ChunkKey) -> None:
        self._order.pop(key, None)

    def evict(self, count: int, evictable: Evictable) -> list[ChunkKey]:
        victims: list[ChunkKey] = []
        passed: list[ChunkKey] = []
        while len(victims) < count and self._order:
            key, _ = self._order.popitem(last=False)
            (victims if evictable(key) else passed).append(key)
        self._order.update(dict.fromkeys(passed))
        return victims

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order

    def check(self) -> None:
        assert len(list(self._order)) == len(self._order), "the order lost a key"


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

    def insert(self, keys: Sequence[ChunkKey]) -> None:
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

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        for key in reversed(keys):
            if key in self._again:
                self._again.move_to_end(key)
            elif key in self._once:
                del self._once[key]
                self._again[key] = None

    def remove(self, key: ChunkKey) -> None:
        for part in (self._once, self._again, self._once_ghosts, self._again_ghosts):
            part.pop(key, None)

    def evict(self, count: int, evictable: Evictable) -> list[ChunkKey]:
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

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, key: object) -> bool:
        return key in self._once or key in self._again

    def check(self) -> None:
        parts = (self._once, self._again, self._once_ghosts, self._again_ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._once_ghosts) + len(self._again_ghosts) <= self._capacity_chunks, "too many ghosts"
        assert 0 <= self._once_target_chunks <= self._capacity_chunks, "the target left its range"


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
        self._small_target_chunks = max(1, int(capacity_chunks * S3FIFO_SMALL_SHARE))
        # Keys with their uses, 0 to S3FIFO_USES_MAX; the next one to leave is first.
        self._small: OrderedDict[ChunkKey, int] = OrderedDict()
        self._main: OrderedDict[ChunkKey, int] = OrderedDict()
        self._ghosts: OrderedDict[ChunkKey, None] = OrderedDict()

    def insert(self, keys: Sequence[ChunkKey]) -> None:
        count_before = len(self)
        for key in reversed(keys):
            if key in self._ghosts:
                del self._ghosts[key]
                self._main[key] = 0
            else:
                self._small[key] = 0
        assert len(self) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        for key in dict.fromkeys(keys):
            queue = self._main if key in self._main else self._small
            uses = queue.get(key, S3FIFO_USES_MAX)
            if uses < S3FIFO_USES_MAX:
                queue[key] = uses + 1

    def remove(self, key: ChunkKey) -> None:
        for part in (self._small, self._main, self._ghosts):
            part.pop(key, None)

    def evict(self, count: int, evictable: Evictable) -> list[ChunkKey]:
        victims: list[ChunkKey] = []
        passed_small: list[tuple[ChunkKey, int]] = []
        passed_main: list[tuple[ChunkKey, int]] = []
        reprieves_left_chunks = count * S3FIFO_REPRIEVES_MAX
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

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, key: object) -> bool:
        return key in self._small or key in self._main

    def check(self) -> None:
        parts = (self._small, self._main, self._ghosts)
        assert len(set().union(*parts)) == sum(len(part) for part in parts), "a key is in two parts"
        assert len(self._ghosts) <= self._capacity_chunks, "too many ghosts"
        uses = [*self._small.values(), *self._main.values()]
        assert all(0 <= count <= S3FIFO_USES_MAX for count in uses), "a use count left its range"


POLICIES: Mapping[str, Callable[[int], EvictionPolicy]] = MappingProxyType(
    {"lru": LruPolicy, "arc": ArcPolicy, "s3fifo": S3FifoPolicy}
)
"""Policies by their name in the configuration; each is made with its owner's capacity in chunks."""
