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

from .base import ChunkKey

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

        An owner that adds the rest of a prefix inserts it before it touches the head, or the head
        would be older than the rest and leave first.
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

        A chunk that is not evictable is passed over and keeps its place. The result is shorter than
        `count` only when no other resident chunk is evictable.
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
        if count > 0:
            for key in self._order:
                if evictable(key):
                    victims.append(key)
                    if len(victims) == count:
                        break
        for key in victims:
            del self._order[key]
        return victims

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order

    def check(self) -> None:
        assert len(list(self._order)) == len(self._order), "the order lost a key"


POLICIES: Mapping[str, Callable[[int], EvictionPolicy]] = MappingProxyType({"lru": LruPolicy})
"""Policies by their name in the configuration; each is made with its owner's capacity in chunks."""
