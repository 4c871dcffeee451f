"""The interface of an eviction policy: it chooses which chunk leaves a full tier next.

A policy holds keys and no bytes. Its owner tells it what became resident, what was used and what
left, and asks it for victims. Policies are pure: no I/O, no clock, no randomness, so a trace
replayed twice evicts the same chunks twice.

Batches are prefixes, head first. A prefix is of use only from its head, so a policy that has to
choose within one batch gives up the tail first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ...base import ChunkKey

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
