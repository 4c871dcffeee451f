"""Finds the prompt of a store where vLLM names whole prompts once, and stores parts of them: up to 0.19."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....tiers.base import ChunkKey

KEYS_MAX = 1 << 18  # of all prompts together: 256 prompts of 1,024 chunks, some 50 MiB


class Owners:
    """The prompts that were asked for, and which of them has which chunk. One thread: the scheduler's.

    A prompt is named by its last key. A chunk of several prompts is the latest one's. What was generated
    belongs to no prompt that was asked for, and is one of its own.

    Args:
        end: told the name of each prompt that is forgotten: the oldest where there are too many, or one that
            stored, as soon as the same is asked for anew.
    """

    def __init__(self, end: Callable[[str], None], keys_max: int = KEYS_MAX) -> None:
        self._end = end
        self._keys_max = keys_max
        self._keys: dict[str, set[ChunkKey]] = {}  # by prompt, the oldest first
        self._owner: dict[ChunkKey, str] = {}
        self._stored: set[str] = set()
        self._keys_count = 0

    def asked(self, keys: Sequence[ChunkKey]) -> str:
        """Name the prompt of a request that asks for all of its chunks, or for the rest of them."""
        name = keys[-1].hex()
        if name in self._stored:  # another request with the same prompt
            self._forget(name)
        self._own(name, keys)
        return name

    def storing(self, keys: Sequence[ChunkKey]) -> str:
        """Name the prompt that a part belongs to: that of its last chunk that any prompt has."""
        owner = self._owner
        name = next((owner[key] for key in reversed(keys) if key in owner), keys[-1].hex())
        self._stored.add(name)
        self._own(name, [key for key in keys if key not in owner])
        return name

    def _own(self, name: str, keys: Sequence[ChunkKey]) -> None:
        known = self._keys.pop(name, set())
        self._keys_count -= len(known)
        known.update(keys)
        self._keys[name] = known
        self._keys_count += len(known)
        self._owner.update(dict.fromkeys(keys, name))
        while self._keys_count > self._keys_max and len(self._keys) > 1:
            self._forget(next(iter(self._keys)))

    def _forget(self, name: str) -> None:
        keys = self._keys.pop(name)
        self._keys_count -= len(keys)
        for key in keys:
            if self._owner.get(key) == name:
                del self._owner[key]
        self._stored.discard(name)
        self._end(name)
