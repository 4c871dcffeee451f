"""A policy of another package, which may fail without harm: lru stands beside it and takes over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import islice

from ...base import ChunkKey
from ...errors import TierUnavailable
from .base import Evictable, EvictionPolicy, PromptId
from .lru import LruPolicy

logger = logging.getLogger(__name__)


class GuardedPolicy:
    """Another's policy, with lru kept in step.

    It chooses the victims as long as it keeps to its contract. The first time that it raises, names a chunk
    that may not leave, or finds fewer victims than there are, a line in the log says so, and from then on
    lru chooses. What is resident, only lru is asked.

    Raises:
        TierUnavailable: the policy cannot be made.
    """

    def __init__(self, capacity_chunks: int, make: Callable[[int], EvictionPolicy]) -> None:
        self._lru = LruPolicy(capacity_chunks)
        self._name = getattr(make, "__qualname__", repr(make))
        try:
            self._theirs: EvictionPolicy | None = make(capacity_chunks)
        except Exception as error:
            raise TierUnavailable("pinned", f"the eviction policy {self._name} failed: {error!r}") from error

    def arrive(self, prompt: PromptId) -> None:
        self._lru.arrive(prompt)
        self._tell(lambda theirs: theirs.arrive(prompt))

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        self._lru.insert(prompt, keys, positions)
        self._tell(lambda theirs: theirs.insert(prompt, list(keys), list(positions)))

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        self._lru.touch(prompt, keys, positions)
        self._tell(lambda theirs: theirs.touch(prompt, list(keys), list(positions)))

    def remove(self, key: ChunkKey) -> None:
        self._lru.remove(key)
        self._tell(lambda theirs: theirs.remove(key))

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        victims = self._their_victims(count, evictable, spare)
        for key in victims:
            self._lru.remove(key)
        missed = self._lru.evict(count - len(victims), evictable, spare=spare)
        if missed:
            self._give_up(f"found {len(victims)} victims where there were {len(victims) + len(missed)}")
        return victims + missed

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return self._lru.line(prompt)

    def __len__(self) -> int:
        return len(self._lru)

    def __contains__(self, key: object) -> bool:
        return key in self._lru

    def check(self) -> None:
        self._lru.check()
        if self._theirs is not None:
            self._theirs.check()
            assert len(self._theirs) == len(self._lru), "the policy lost count"

    def _tell(self, call: Callable[[EvictionPolicy], None]) -> None:
        if self._theirs is None:
            return
        try:
            call(self._theirs)
        except Exception as error:
            self._give_up(f"raised {error!r}", error)

    def _their_victims(self, count: int, evictable: Evictable, spare: PromptId | None) -> list[ChunkKey]:
        """Victims that may leave; none where theirs named others."""
        if self._theirs is None or count < 1:
            return []
        try:
            victims = list(islice(self._theirs.evict(count, evictable, spare=spare), count + 1))
            self._refuse_wrong(victims, count, evictable, spare)
        except Exception as error:
            self._give_up(f"raised {error!r}", error)
            return []
        return victims

    def _refuse_wrong(
        self, victims: Sequence[ChunkKey], count: int, evictable: Evictable, spare: PromptId | None
    ) -> None:
        """Raise ValueError where these may not leave."""
        spared = () if spare is None else self._lru.line(spare)
        if len(victims) > count or len(set(victims)) < len(victims):
            raise ValueError("more victims than were asked for, or one twice")
        for key in victims:
            if key not in self._lru or key in spared or not evictable(key):
                raise ValueError(f"{key!r} is not there, or may not leave")

    def _give_up(self, why: str, error: BaseException | None = None) -> None:
        if self._theirs is not None:
            self._theirs = None
            logger.error("the eviction policy %s %s; lru takes its place", self._name, why, exc_info=error)
