"""The plugin for vLLM 0.26 to 0.33, whose specs are built from an `OffloadingConfig`.

vLLM builds the spec once in the scheduler process and once in each worker process; workers usually come
first. The arena is what they share: whoever comes first creates it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    LookupResult,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    TransferResult,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from ...engine.events import EventLog
from ...engine.placement import Presence
from ...tiers.copyplan import Spans
from ...tiers.gpu import GpuTier
from . import metrics
from .events import offloading_events
from .identity import identity_fields
from .options import composite_spec
from .placement import EVERY_TIER, ServerPlacement, Tiers
from .server import Geometry, SchedulerSide, attach_arena
from .worker import CopyWorker

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

_RESULT = {
    Presence.READY: LookupResult.HIT,
    Presence.PENDING: LookupResult.HIT_PENDING,
    Presence.LATE: LookupResult.MISS,
    Presence.FULL: LookupResult.MISS,
    Presence.MISS: LookupResult.MISS,
}


class SlotsSpec(LoadStoreSpec):
    """Which slots a job reads or writes; travels by pickle from the scheduler to the workers."""

    def __init__(self, slots: list[int]) -> None:
        self.slots = np.array(slots, np.int32)

    def __repr__(self) -> str:
        return f"SlotsSpec({self.slots.tolist()})"


class CompositeOffloadingSpec(OffloadingSpec):
    """One offloading spec for the whole chain of a tier config.

    Raises:
        ConfigError: the document under ``kvtier`` is missing or wrong.
    """

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        self.replicated_layout = config.replicated_layout
        self._composite = composite_spec(config.extra_config)
        self._geometry = Geometry(
            server=config.engine_id,
            part_bytes=config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk,
            ranks=config.parallel.world_size,
            parts=1 if config.replicated_layout else config.parallel.world_size,
        )

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return metrics.definitions()

    def get_manager(self) -> Manager:
        events = EventLog() if self.config.enable_kv_cache_events else None
        side = SchedulerSide(self._composite, self._geometry, identity_fields(self.config), events=events)
        return Manager(side, events)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        gpu = GpuTier.of_tensors(
            [tensor.tensor for tensor in kv_caches.tensors],
            blocks_per_chunk=self.blocks_per_chunk,
            groups=[
                [(ref.tensor_idx, ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs
            ],
        )
        arena = attach_arena(self._composite, self._geometry)
        gpu.prepare(arena)
        rank = self.config.parallel.rank
        part = 0 if self.replicated_layout else rank
        return Worker(CopyWorker(gpu, arena, rank=rank, part=part))


class Manager(OffloadingManager):
    """Runs in the scheduler; no call waits for a disk or a device, and none raises for the world's faults."""

    def __init__(self, side: SchedulerSide, events: EventLog | None = None) -> None:
        self._side = side
        self._events = events
        self._placement: ServerPlacement = side.placement
        self._reporter = metrics.Reporter(side.chain.stats)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        tiers = _tiers_of(req_context)
        return _RESULT[self._placement.lookup(req_context.req_id, key, tiers)]

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> Any:
        # Asked from 0.32 on, where the module that names the sources is there.
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        source = self._placement.source(req_context.req_id, key)
        return CacheHitSource.HOST if source == "pinned" else CacheHitSource.DISK

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        return SlotsSpec(self._placement.prepare_load(req_context.req_id, keys))

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._placement.complete_load(req_context.req_id, keys)

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput:
        plan = self._placement.prepare_store(list(keys))
        return PrepareStoreOutput(
            [OffloadKey(key) for key in plan.keys],
            SlotsSpec(plan.slots),
            [OffloadKey(key) for key in plan.evicted],
        )

    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        self._placement.complete_store(keys, success)

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._side.chain.touch(list(keys))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._placement.finish(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._placement.sweep()

    def has_pending_work(self) -> bool:
        # Only slots in limbo need further steps: the workers' next steps are what frees them.
        return self._placement.in_limbo > 0

    def reset_cache(self) -> None:
        self._placement.reset()

    def take_events(self) -> Iterable[Any]:
        return offloading_events(self._events.take()) if self._events is not None else ()

    def get_stats(self) -> OffloadingConnectorStats | None:
        return self._reporter.report()

    def shutdown(self) -> None:
        self._side.close()


class Worker(OffloadingWorker):
    """Runs in each worker process."""

    def __init__(self, copies: CopyWorker) -> None:
        self._copies = copies

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, SlotsSpec)
        self._copies.store(job_id, _spans(src_spec), dst_spec.slots)
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, SlotsSpec)
        self._copies.load(job_id, _spans(dst_spec), src_spec.slots, expedited=expedited)
        return True

    def get_finished(self) -> list[TransferResult]:
        return [TransferResult(*finished) for finished in self._copies.finished()]

    def wait(self, job_ids: set[int]) -> None:
        self._copies.wait(job_ids)

    def shutdown(self) -> None:
        self._copies.close()


def _tiers_of(req_context: ReqContext) -> Tiers:
    """Which tiers the request's own filter lets it load from; releases before the filter have none."""
    tier_filter = getattr(req_context, "load_tier_filter", None)
    if tier_filter is None or tier_filter is type(tier_filter).ALL:
        return EVERY_TIER
    from vllm.v1.kv_offload.base import Locality, Medium

    return Tiers(
        pinned=tier_filter.allows(Medium.CPU, Locality.LOCAL),
        below=tier_filter.allows(Medium.STORAGE, Locality.LOCAL),
    )


def _spans(spec: GPULoadStoreSpec) -> Spans:
    return Spans(spec.block_ids.astype(np.int64), tuple(spec.group_sizes), tuple(spec.block_indices))
