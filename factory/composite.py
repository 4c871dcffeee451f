"""The composite spec: opens a config's chain of tiers in order, and closes it in reverse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.bounded import ended
from ..engine.movement.deadlines import NO_DEADLINE_S
from ..tiers import Tier
from ..tiers.base import GuardsItself
from ..tiers.breaker import Breaker
from ..tiers.namespaced import Namespaced
from ..tiers.nvme.store.namespaces import Identity
from ..tiers.pinned.arena import Arena
from ..tiers.pinned.tier import PinnedTier
from .base import SharedPlace, TierConfig, TierContext, unique_name
from .builtin import open_arena
from .config import BUILTIN_CONFIGS, KvtierConfig, load_config, resolve_config, rooms
from .entries import PinnedConfig
from .registry import tier_factory
from .room import Cap, Room, cap_of, room_remarks

logger = logging.getLogger(__name__)

CLOSE_S = 5.0  # for each tier; a clean close takes milliseconds; a drive that hangs is left behind


class CompositeSpec:
    """Builds every tier below the device from one config.

    The gpu entry stands for the server's own tensors, so whoever holds them makes the gpu tier. Each tier of
    a chain has its own name, which statistics, metrics and events use: `pinned`, `nvme`, `nvme1`. Call
    `start` and `close` on one event loop.
    """

    def __init__(self, config: KvtierConfig) -> None:
        self._config = config
        self._tiers: list[Tier] = []
        self._identity = Identity({})
        self._rooms: tuple[Room, ...] = ()

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any]) -> CompositeSpec:
        """Read and check a document: the path of a file, or the document itself.

        Raises:
            ConfigError: the first thing wrong.
        """
        return cls(load_config(source))

    @property
    def load_deadlines_s(self) -> Mapping[str, float]:
        """The deadline of each tier below the pinned one, after which a load from it counts as late."""
        return {name: _deadline_s(entry) for name, entry in self._entries()}

    @property
    def unfilled(self) -> frozenset[str]:
        """Names of the tiers below the pinned one that get nothing of what a tier further down supplies."""
        return frozenset(name for name, entry in self._entries() if not getattr(entry, "fill", True))

    @property
    def keeps_on_reset(self) -> bool:
        """Whether stored chunks survive a reset of the server's cache."""
        return self._config.on_reset == "keep"

    @property
    def may_recompute(self) -> bool:
        """Whether chunks are left below where computing them is expected to be sooner."""
        return self._config.recompute == "auto"

    @property
    def trace(self) -> Path | None:
        """Where a server records its prompts; None where it does not."""
        return self._config.trace

    @property
    def namespace(self) -> bytes:
        """The digest of what makes two chunks' bytes interchangeable, once `start` has returned."""
        return self._identity.digest

    @property
    def label(self) -> str:
        """What to call the namespace in a sentence, once `start` has returned."""
        return self._identity.label

    @property
    def places(self) -> Mapping[str, list[str]]:
        """The directories of each tier on drives, by its name."""
        return {name: [str(room.path) for room in rooms] for name, rooms in self._rooms_by_tier()}

    @property
    def caps(self) -> Mapping[str, Cap]:
        """What each tier on drives can take by the room that there was at the start, by its name."""
        return {name: cap_of(rooms) for name, rooms in self._rooms_by_tier()}

    @property
    def pinned(self) -> PinnedTier:
        """The tier that all transfers pass through; available once `start` has returned."""
        pinned = self._tiers[0]
        assert isinstance(pinned, PinnedTier), "the config puts the pinned tier below the device"
        return pinned

    @property
    def lower(self) -> Sequence[Tier]:
        """The tiers below the pinned one, nearest first."""
        return self._tiers[1:]

    @property
    def foreign(self) -> frozenset[str]:
        """Names of the tiers below the pinned one that are of other packages."""
        return frozenset(name for name, entry in self._entries() if entry.type not in BUILTIN_CONFIGS)

    async def start(
        self,
        *,
        part_bytes: int,
        parts: int,
        identity: Mapping[str, str] | Callable[[Arena], Mapping[str, str]],
        place: SharedPlace | None = None,
    ) -> None:
        """Open every tier below the device, top down; if one fails, those before it are closed again.

        Args:
            part_bytes: one rank's bytes of one chunk.
            parts: rank parts of a slot.
            identity: what makes two chunks' bytes interchangeable, field by field; or a function that returns
                it, called once the arena exists, in which other processes may have left a message.
            place: where the processes that share the arena find it; None for a private arena.

        Raises:
            ConfigError: the config does not fit this machine or these chunks.
            TierUnavailable, IdentityMismatch: a tier cannot start.
        """
        assert not self._tiers, "a spec starts once"
        context = TierContext(part_bytes=part_bytes, parts=parts, identity={}, place=place)
        config = resolve_config(self._config, chunk_bytes=context.chunk_bytes)
        # All before any is opened. The arena is not among them: its first process looks for the room.
        for index, entry in enumerate(config.tiers[2:], start=2):
            entry.probe(chunk_bytes=context.chunk_bytes, json_path=f"tiers[{index}]")
        self._rooms = tuple(rooms(config, chunk_bytes=context.chunk_bytes).values())
        for remark in room_remarks(self._rooms):
            logger.warning("%s", remark)
        try:
            for index, entry in enumerate(config.tiers[1:], start=1):
                factory = tier_factory(entry.type, entry.module_path)
                tier = await factory.open(entry, context.at(f"tiers[{index}]"))
                self._tiers.append(tier if index == 1 else self._guarded(tier, entry, context))
                if index == 1:
                    fields = identity(self.pinned.arena) if callable(identity) else identity
                    epoch = {"weights_epoch": str(self._config.weights_epoch)}
                    context = replace(context, identity={**fields, **epoch})
                    self._identity = Identity(context.identity)
        except BaseException:
            await self.close()
            raise

    def open_arena(self, *, part_bytes: int, parts: int, place: SharedPlace) -> Arena:
        """Map the pinned tier's arena in a process that only copies: a worker of the server.

        Raises:
            ConfigError, TierUnavailable: as for `start`.
        """
        context = TierContext(part_bytes=part_bytes, parts=parts, identity={}, place=place)
        entry = self._config.tiers[1].resolve(chunk_bytes=context.chunk_bytes, json_path="tiers[1]")
        assert isinstance(entry, PinnedConfig), "the config puts the pinned tier below the device"
        return open_arena(entry, context)

    async def close(self) -> None:
        """Close the tiers, bottom up; one that fails or hangs does not keep the others open. Idempotent."""
        while self._tiers:
            tier = self._tiers.pop()
            await ended(f"the {tier.name} tier", tier.close(), CLOSE_S)

    def _rooms_by_tier(self) -> Iterator[tuple[str, list[Room]]]:
        for index, tier in enumerate(self.lower, start=2):
            own = [room for room in self._rooms if room.place.startswith(f"tiers[{index}].")]
            if own:
                yield tier.name, own

    def _entries(self) -> Iterator[tuple[str, TierConfig]]:
        """The entries of the tiers below the pinned one, once they have started, by the tiers' names."""
        for tier, entry in zip(self.lower, self._config.tiers[2:], strict=True):
            yield tier.name, entry

    def _guarded(self, tier: Tier, entry: TierConfig, context: TierContext) -> Tier:
        """The tier, under a name of its own in this chain, behind a breaker with its own deadline.

        A tier of another package sees keys that begin with the namespace, so it cannot forget it.
        """
        name = unique_name(tier.name, {other.name for other in self._tiers})
        if entry.type not in BUILTIN_CONFIGS:
            tier = Namespaced(tier, Identity(context.identity).digest)
        elif isinstance(tier, GuardsItself):
            tier.rename(name)
            return tier
        return Breaker(tier, name=name, slow_s=_deadline_s(entry))


def _deadline_s(entry: TierConfig) -> float:
    return getattr(entry, "load_deadline_s", NO_DEADLINE_S)
