"""Keeps the chunks of one namespace apart from all others in a tier that knows nothing of namespaces.

Every key that reaches the tier begins with the digest of a namespace, so neither the tier nor its author can
forget it. A reset needs nothing of the tier either: from then on the keys begin with something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

from .base import (
    KEY_BYTES_MAX,
    Buffer,
    ChunkKey,
    CountsUses,
    Outcome,
    RemoveReason,
    ReportsProgress,
    ReportsRemovals,
    Tier,
    TierStats,
    ability,
)

DIGEST_BYTES = 32
_PLAIN, _HASHED = b"k", b"h"  # what follows the digest: the key itself, or a hash where it would be too long
_HASH_BYTES = 64


class Namespaced:
    """A tier that sees only keys of one namespace, none longer than `KEY_BYTES_MAX`.

    Threads, cancellation and buffers are the tier's own, and so are its numbers, which include the chunks of
    other namespaces. Removals of chunks whose keys had to be hashed are not reported.
    """

    def __init__(self, tier: Tier, digest: bytes) -> None:
        assert len(digest) == DIGEST_BYTES, "the digest of an identity"
        self.name = tier.name
        self._tier = tier
        self._progress = ability(tier, ReportsProgress)  # type: ignore[type-abstract]
        self._removals = ability(tier, ReportsRemovals)  # type: ignore[type-abstract]
        self._uses = ability(tier, CountsUses)  # type: ignore[type-abstract]
        self._digest = digest  # replaced as a whole, so any thread may read it

    @property
    def moved_bytes(self) -> int:
        """What the tier's device has moved, 0 where it does not say."""
        return 0 if self._progress is None else self._progress.moved_bytes

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return self._tier.lookup(self._inner(keys))

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        inner = self._inner(keys)
        return _outer(dict(zip(inner, keys, strict=True)), await self._tier.store(inner, buffers))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        inner = self._inner(keys)
        return _outer(dict(zip(inner, keys, strict=True)), await self._tier.load(inner, buffers))

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await self._tier.remove(self._inner(keys), reason)

    async def flush(self) -> None:
        await self._tier.flush()

    async def invalidate(self) -> None:
        """Go on under a digest that nobody else has: what the weights are now, no field can say."""
        self._digest = os.urandom(DIGEST_BYTES)

    def watch(self, report: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        if self._removals is not None:
            self._removals.watch(lambda inner, reason: self._report(report, inner, reason))

    def used(self, keys: Sequence[ChunkKey]) -> None:
        if self._uses is not None:
            self._uses.used(self._inner(keys))

    def stats(self) -> TierStats:
        return self._tier.stats()

    async def close(self) -> None:
        await self._tier.close()

    def _inner(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        digest = self._digest  # once: a reset in between must not split the batch
        plain, longest = digest + _PLAIN, KEY_BYTES_MAX - DIGEST_BYTES - len(_PLAIN)
        return [plain + key if len(key) <= longest else digest + _HASHED + _hash(key) for key in keys]

    def _report(
        self,
        report: Callable[[Sequence[ChunkKey], RemoveReason], None],
        inner: Sequence[ChunkKey],
        reason: RemoveReason,
    ) -> None:
        own = self._digest + _PLAIN
        keys = [key[len(own) :] for key in inner if key.startswith(own)]
        if keys:
            report(keys, reason)


def _outer(keys: dict[ChunkKey, ChunkKey], outcome: Outcome) -> Outcome:
    """The tier's outcome under the caller's keys; what was not asked for is left out."""
    succeeded = tuple(keys[key] for key in outcome.succeeded if key in keys)
    failed = {keys[key]: why for key, why in outcome.failed.items() if key in keys}
    return Outcome(succeeded, failed, outcome.is_sample)


def _hash(key: ChunkKey) -> bytes:
    return hashlib.blake2b(key, digest_size=_HASH_BYTES).digest()
