"""The interface of an eviction policy: it chooses which chunk leaves a full tier next.

A policy holds keys and no bytes. Its owner reports which chunks became resident, were used or left, and asks
it for victims. Policies are pure: no I/O, no clock, no randomness, so a trace replayed twice evicts the same
chunks twice.

A prefix is useful only from its head, and a prompt comes in over many steps. So a policy orders *lines*: the
chunks of one prompt, head first, by their positions in it. A resident chunk is in exactly one line, that of
the last prompt that stored or used it. A policy's lists are lists of lines, oldest first; using or extending
a line moves the whole line, and the victim is the tail of a line. Heads outlive their tails however many
steps a prompt took.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from ...base import ChunkKey

Evictable: TypeAlias = Callable[[ChunkKey], bool]
"""Says whether a chunk may leave now; False while a transfer pins it."""

PromptId: TypeAlias = int
"""Names a prompt. The owner counts them and never uses one twice."""


@runtime_checkable
class EvictionPolicy(Protocol):
    """The order in which chunks leave a tier.

    Positions tell the chunks of a prompt apart: the nearer to its head, the smaller. They need not be
    adjacent, nor come in order. Each call names as many positions as keys.

    Threads: none; the owner calls under its own lock. A call takes about a microsecond a key or less,
    allocates no more than its result, and never fails. Capacity is the owner's to enforce: a policy
    knows it only to size its parts and its ghosts (keys that left, remembered without their bytes).
    """

    def arrive(self, prompt: PromptId) -> None:
        """The prompt is in use now: its line, empty or not, becomes the youngest.

        The owner calls it when it takes slots for the prompt, before they are filled: the order of lines is
        that of allocation, not that in which transfers end.
        """
        ...

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        """Chunks of the prompt became resident, none of which was before. Its line does not move.

        Becoming resident is the first use, so an owner does not touch these chunks for the same prompt:
        each would count as used again, and arc would be no more than lru.
        """
        ...

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        """The prompt used chunks, which join its line; unknown keys are ignored.

        A prompt uses a chunk once: a key that is in its line already, or is repeated, only gets its place.
        """
        ...

    def remove(self, key: ChunkKey) -> None:
        """Forget a chunk that left for another reason than eviction; an unknown key is ignored."""
        ...

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        """Choose up to `count` victims, and forget them; the least valuable one comes first.

        A chunk that is not evictable is in use. Its line is skipped and moved to the end of its list, so that
        the next call does not meet it first. The result is shorter than `count` only if no other resident
        chunk is evictable; a `count` below one evicts nothing.

        Args:
            spare: the prompt that the room is for; none of its line is chosen.
        """
        ...

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        """The resident chunks of the prompt's line; asked only where room is short."""
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
