"""What tests of eviction policies share: prompts that store and use chunks, as an owner reports them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import EvictionPolicy, PromptId

_prompts = itertools.count()


def insert(policy: EvictionPolicy, keys: Sequence[ChunkKey]) -> None:
    """Let chunks become resident, as those of a prompt of their own."""
    extend(policy, next(_prompts), keys)


def touch(policy: EvictionPolicy, keys: Sequence[ChunkKey]) -> None:
    """Use chunks, as another prompt does."""
    policy.touch(next(_prompts), keys, range(len(keys)))


def extend(policy: EvictionPolicy, prompt: PromptId, keys: Sequence[ChunkKey], start: int = 0) -> None:
    """Let more chunks of a prompt become resident, from a position on."""
    policy.arrive(prompt)
    policy.insert(prompt, keys, range(start, start + len(keys)))


def chunks(prefix: str, count: int) -> list[ChunkKey]:
    return [f"{prefix}{position}".encode() for position in range(count)]


def anything(key: ChunkKey) -> bool:
    return True


def nothing(key: ChunkKey) -> bool:
    return False


def admit(policy: EvictionPolicy, capacity_chunks: int, keys: list[ChunkKey]) -> list[ChunkKey]:
    """Make room for `keys` and insert them, as an owner does; the victims are returned."""
    victims = policy.evict(len(policy) + len(keys) - capacity_chunks, anything)
    insert(policy, keys)
    policy.check()
    return victims
