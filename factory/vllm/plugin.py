"""Builds each role of one server from its facts, for every generation of vLLM's interface.

vLLM makes a spec once in the scheduler process and once in each worker process; workers usually come first.
They share the arena: the first process creates it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace

from ...engine.events import EventLog
from ...engine.movement.prompts import GroupOf, one_group
from ...tiers.device.gpu import GpuTier
from ...tiers.nvme.store.namespaces import one_process
from ...tiers.pinned.arena import Arena
from .facts import GROUP_BYTES, ServerFacts
from .identity import identity_fields
from .options import composite_spec, warn_of_unread
from .server import Geometry, SchedulerSide, attach_arena
from .telling.log import server_logger
from .worker import CopyWorker

logger = logging.getLogger(__name__)


class Plugin:
    """One role of one server; each process makes its own.

    Raises:
        ConfigError: the document under ``kvtier`` is missing or wrong.
    """

    def __init__(self, facts: ServerFacts) -> None:
        self._facts = facts
        self._composite = composite_spec(facts.extra)
        ranks = facts.parallel.world_size
        self._geometry = Geometry(
            server=facts.engine_id,
            part_bytes=facts.rank_block_bytes * facts.blocks_per_chunk,
            ranks=ranks,
            parts=1 if facts.is_replicated else ranks,
            chunk_tokens=facts.chunk_tokens,
        )

    def scheduler(self, group_of: GroupOf = one_group, log: type[EventLog] = EventLog) -> SchedulerSide:
        """Start the chain in the scheduler process.

        Args:
            group_of: names the group of layers that a chunk belongs to, by its key.
            log: keeps events where the server publishes them.
        """
        warn_of_unread(self._facts.extra)
        events = log() if self._facts.has_events else None
        return SchedulerSide(
            self._composite,
            self._geometry,
            self._identity,
            group_tokens=group_tokens(self._facts, group_of),
            events=events,
            group_of=group_of,
            log=server_logger(),
        )

    def worker(self, gpu: GpuTier) -> CopyWorker:
        """Join the server's arena in a worker process."""
        arena = attach_arena(self._composite, self._geometry)
        self._report_served(arena)
        gpu.prepare(arena)
        rank = self._facts.parallel.rank
        return CopyWorker(gpu, arena, rank=rank, part=0 if self._facts.is_replicated else rank)

    def _report_served(self, arena: Arena) -> None:
        if self._facts.served is not None:
            arena.note = json.dumps(self._facts.served).encode()

    def _identity(self, arena: Arena) -> Mapping[str, str]:
        """The namespace. From 0.26 on only workers know how the model is served; they start first."""
        if self._facts.served is not None:
            return identity_fields(self._facts)
        if not arena.note:
            logger.warning(
                "kvtier: no worker has reported how the model is served. Chunks will not be reused after a "
                "restart."
            )
        served = json.loads(arena.note) if arena.note else one_process()
        return identity_fields(replace(self._facts, served=served))


def group_tokens(facts: ServerFacts, group_of: GroupOf) -> Mapping[bytes, int]:
    """Tokens that a chunk stands for, by what `group_of` calls its group of layers."""
    return {
        group_of(group.index.to_bytes(GROUP_BYTES, "big")): group.tokens_per_block * facts.blocks_per_chunk
        for group in facts.groups
    }
