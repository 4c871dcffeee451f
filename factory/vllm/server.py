"""What the processes of one server build from a spec: the shared arena, and the scheduler's chain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ...engine.events import EventLog
from ...engine.lifetime import Lifetime, chain_of
from ...engine.live.publisher import Publisher, facts_of
from ...engine.movement.prompts import GroupOf, one_group
from ...engine.movement.rates import MeasuredPrefill
from ...engine.movement.worth import Computing
from ...engine.recording.recorder import Recorder, Sizes
from ...engine.server import ServerChain
from ...tiers.pinned.arena import Arena
from ..base import SharedPlace
from ..composite import CompositeSpec
from ..room import Cap
from .identity import warn_of_random_hashes
from .metrics import Reporter
from .scheduling.placement import ServerPlacement
from .scheduling.progress import Progress
from .telling.facts import NAMESPACE_DIGITS, TierFacts
from .telling.log import SavedLines, start_line
from .telling.refusals import RefusalFilter, refusal_logger

logger = logging.getLogger(__name__)

DRAIN_S = 10.0  # what a clean shutdown gives the last flush; vLLM may kill the process 15 s after its start


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the slots of one server are laid out; the same in all its processes.

    Attributes:
        server: unique name of the server instance on this host.
        part_bytes: one rank's bytes of one chunk.
        ranks: worker processes.
        parts: rank parts in a slot; one where all ranks hold the same bytes.
        chunk_tokens: how many tokens of all layers a chunk stands for.
    """

    server: str
    part_bytes: int
    ranks: int
    parts: int
    chunk_tokens: float

    def place(self) -> SharedPlace:
        """The arena's place, attached by every worker and the scheduler."""
        return SharedPlace(name=self.server, mappers=self.ranks + 1, ranks=self.ranks)


def attach_arena(composite: CompositeSpec, geometry: Geometry) -> Arena:
    """Map the server's arena into a worker process."""
    return composite.open_arena(part_bytes=geometry.part_bytes, parts=geometry.parts, place=geometry.place())


class SchedulerSide:
    """The chain in the scheduler process, from start to shutdown.

    Args:
        group_tokens: tokens that a chunk stands for, by group of layers.
        group_of: names the group of layers that a chunk belongs to, by its key.
        log: where the lines about the tiers go.

    Attributes:
        lower: names of the tiers below the pinned one, nearest first.
        foreign: those of them that are of other packages.
        tiers: what stays as it is of each tier, the pinned one first.

    Raises:
        TierUnavailable, IdentityMismatch, ConfigError: a tier cannot start; nothing is left running.
    """

    def __init__(
        self,
        composite: CompositeSpec,
        geometry: Geometry,
        identity: Callable[[Arena], Mapping[str, str]],
        *,
        group_tokens: Mapping[bytes, int],
        events: EventLog | None = None,
        group_of: GroupOf = one_group,
        log: logging.Logger = logger,
    ) -> None:
        self.events = events
        prefill = MeasuredPrefill()
        # Of several groups the largest chunks, which speaks for loading: some groups load a window only.
        computing = Computing(max(group_tokens.values()), prefill)
        self._lifetime = Lifetime(
            composite, partial(chain_of, ServerChain, composite, events, computing=computing)
        )
        open_tiers = partial(
            composite.start,
            part_bytes=geometry.part_bytes,
            parts=geometry.parts,
            identity=identity,
            place=geometry.place(),
        )
        try:
            self._lifetime.start(open_tiers)
        except BaseException:
            self._lifetime.end(0.0)
            raise
        if composite.lower:
            warn_of_random_hashes()
        self.chain = self._lifetime.ready().chain
        self.lower = [tier.name for tier in composite.lower]
        self.foreign = composite.foreign
        self._recorder = self._recorder_of(composite, geometry, group_tokens, group_of)
        self.placement = ServerPlacement(
            self.chain,
            composite.pinned.arena,
            Progress(prefill, group_tokens, group_of),
            keeps_on_reset=composite.keeps_on_reset,
            group_of=group_of,
            ended=None if self._recorder is None else self._recorder.ended,
        )
        self._refusals, self._refusal_logger = RefusalFilter(), refusal_logger()
        if self._refusal_logger is not None:
            self._refusal_logger.addFilter(self._refusals)
        self.tiers = self._facts(composite, geometry.chunk_tokens)
        log.info("%s", start_line(self.tiers, self.chain.stats()))
        self._saved = SavedLines(self.chain.stats, geometry.chunk_tokens, log)
        facts = facts_of(composite, "vllm", composite.pinned.slot_bytes, geometry.chunk_tokens)
        publisher = Publisher(facts, self.chain.stats)
        self._telling = [self._lifetime.loop.submit(telling.run()) for telling in (self._saved, publisher)]

    def reporter(self) -> Reporter:
        """Begin to make reports of the tiers' numbers."""
        reporter = Reporter(self.chain.stats)
        self._telling.append(self._lifetime.loop.submit(reporter.run()))
        return reporter

    def tells_no_ends(self) -> None:
        """This server does not say when a prompt has ended: what was to be recorded is not."""
        if self._recorder is not None:
            logger.warning(
                'kvtier: "trace" records nothing: vLLM reports the end of prompts from 0.23 on, '
                "and this is an older one"
            )

    def close(self) -> None:
        """Bring what waits to the last tier within a bound, then stop. Idempotent.

        A drive that hangs is left behind; what it may still touch stays mapped.
        """
        if self._refusal_logger is not None:
            self._refusal_logger.removeFilter(self._refusals)
        for telling in self._telling:
            telling.cancel()
        self._saved.say()
        if self._recorder is not None:
            self._recorder.close()
        self._lifetime.end(DRAIN_S)

    def _recorder_of(
        self,
        composite: CompositeSpec,
        geometry: Geometry,
        group_tokens: Mapping[bytes, int],
        group_of: GroupOf,
    ) -> Recorder | None:
        """What records the prompts, if the document asks for it: by the group of the largest chunks."""
        if composite.trace is None:
            return None
        group = max(group_tokens, key=group_tokens.__getitem__)
        sizes = Sizes(composite.pinned.slot_bytes, geometry.chunk_tokens, group_tokens[group])
        return Recorder(composite.trace, sizes, lambda key: group_of(key) == group)

    def _facts(self, composite: CompositeSpec, chunk_tokens: float) -> list[TierFacts]:
        chunk_bytes, stats = composite.pinned.slot_bytes, self.chain.stats()
        capacities = {name: tier.capacity_bytes for name, tier in stats.tiers.items()}
        caps = {name: Cap(size, "capacity") for name, size in capacities.items()} | dict(composite.caps)
        return [
            TierFacts(
                tier=name,
                capacity_bytes=capacity_bytes,
                cap_bytes=caps[name].size_bytes,
                bound_by=caps[name].bound_by,
                capacity_tokens=int(caps[name].size_bytes // chunk_bytes * chunk_tokens),
                chunk_bytes=chunk_bytes,
                chunk_tokens=chunk_tokens,
                namespace=composite.namespace.hex()[:NAMESPACE_DIGITS],
            )
            for name, capacity_bytes in capacities.items()
        ]
