"""What the roles of one server build from its facts, whatever the generation of vLLM's interface.

vLLM makes a spec once in the scheduler process and once in each worker process; workers usually come first.
The arena is what they share: whoever comes first creates it.
"""

from __future__ import annotations

from ...engine.events import EventLog
from ...tiers.gpu import GpuTier
from .facts import ServerFacts
from .identity import identity_fields
from .options import composite_spec
from .server import Geometry, SchedulerSide, attach_arena
from .worker import CopyWorker


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
        )

    def scheduler(self) -> SchedulerSide:
        """Start the chain in the scheduler process."""
        events = EventLog() if self._facts.has_events else None
        return SchedulerSide(self._composite, self._geometry, identity_fields(self._facts), events=events)

    def worker(self, gpu: GpuTier) -> CopyWorker:
        """Join the server's arena in a worker process."""
        arena = attach_arena(self._composite, self._geometry)
        gpu.prepare(arena)
        rank = self._facts.parallel.rank
        return CopyWorker(gpu, arena, rank=rank, part=0 if self._facts.is_replicated else rank)
