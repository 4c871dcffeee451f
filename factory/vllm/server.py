"""What the processes of one server build from a spec: the shared arena, and the scheduler's chain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...engine.bounded import ended
from ...engine.chain import Chain
from ...engine.events import EventLog
from ...engine.loop import LoopThread
from ...tiers.pinned.arena import Arena
from ..base import SharedPlace
from ..composite import CompositeSpec
from .identity import warn_of_random_hashes
from .placement import ServerPlacement

logger = logging.getLogger(__name__)

DRAIN_S = (
    10.0  # what a clean shutdown gives the chunks that wait for the disk; a server may be killed after 15
)

STOP_S = 5.0  # what the transfers under way get then; only a disk that hangs takes longer


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the slots of one server are laid out; the same in all its processes.

    Attributes:
        server: unique name of the server instance on this host.
        part_bytes: one rank's bytes of one chunk.
        ranks: worker processes.
        parts: rank parts in a slot; one where all ranks hold the same bytes.
    """

    server: str
    part_bytes: int
    ranks: int
    parts: int

    def place(self) -> SharedPlace:
        """The arena's place, attached by every worker and the scheduler."""
        return SharedPlace(name=self.server, mappers=self.ranks + 1, ranks=self.ranks)


def attach_arena(composite: CompositeSpec, geometry: Geometry) -> Arena:
    """Map the server's arena into a worker process."""
    return composite.open_arena(part_bytes=geometry.part_bytes, parts=geometry.parts, place=geometry.place())


class SchedulerSide:
    """The chain in the scheduler process, from start to shutdown.

    Raises:
        TierUnavailable, IdentityMismatch, ConfigError: a tier cannot start; nothing is left running.
    """

    def __init__(
        self,
        composite: CompositeSpec,
        geometry: Geometry,
        identity: Callable[[Arena], Mapping[str, str]],
        *,
        events: EventLog | None = None,
    ) -> None:
        self._composite = composite
        self.events = events
        self._loop = LoopThread()
        self._closed = False
        try:
            start = composite.start(
                part_bytes=geometry.part_bytes,
                parts=geometry.parts,
                identity=identity,
                place=geometry.place(),
            )
            self._loop.submit(start).result()
        except BaseException:
            self._loop.close()
            raise
        if composite.lower:
            warn_of_random_hashes()
        pinned = composite.pinned
        self.chain = Chain(
            pinned,
            composite.lower,
            self._loop,
            load_deadline_s=composite.load_deadline_s,
            events=events,
        )
        self.placement = ServerPlacement(self.chain, pinned.arena, keeps_on_reset=composite.keeps_on_reset)
        logger.info("kvtier: %s", composite.summary())

    def close(self) -> None:
        """Bring what waits to the disk within a bound, then stop; a disk that hangs is left. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.submit(self._close()).result()
        self._loop.close()

    async def _close(self) -> None:
        if not await ended("the last flush", self.chain.flush(), DRAIN_S):
            dirty = self.chain.stats().dirty_chunks
            logger.warning("kvtier: shut down with %d chunks not yet on disk; they are dropped", dirty)
        await ended("the movement between tiers", self.chain.stop(), STOP_S)
        await self._composite.close()  # what hangs holds its own buffers: the arena stays mapped for them
