"""The plugin for vLLM 0.25. Later releases use its manager and its worker, but not its spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import LookupResult, OffloadingWorker, TransferResult

from ....engine.movement.placement import Presence
from ..places import below
from ..worker import CopyWorker
from .canonical import spans
from .manager import KeyedManager, SlotsSpec, ends_of, group_of, position_of
from .spec_of_config import SpecOfConfig

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import (
        CanonicalKVCaches,
        GPULoadStoreSpec,
        LoadStoreSpec,
        OffloadKey,
        ReqContext,
        ScheduleEndContext,
    )

_RESULT = {
    Presence.READY: LookupResult.HIT,
    Presence.PENDING: LookupResult.HIT_PENDING,
    Presence.ASKING: LookupResult.RETRY,
    Presence.LATE: LookupResult.MISS,
    Presence.FULL: LookupResult.MISS,
    Presence.MISS: LookupResult.MISS,
}


class Manager(KeyedManager):
    """Runs in the scheduler."""

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        presence = self._placement.lookup(
            self._request(req_context),
            key,
            below(req_context, self._side.lower, self._side.foreign),
            told=position_of(key, req_context),
            ends=ends_of(req_context),
        )
        return _RESULT[presence]

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for request in context.new_req_ids:  # they run: what they held and did not load is of no use to them
            self._placement.let_go(request)
        self._placement.scheduled()


class Worker(OffloadingWorker):
    """Runs in each worker process."""

    def __init__(self, copies: CopyWorker) -> None:
        self._copies = copies

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, SlotsSpec)
        self._copies.store(job_id, spans(src_spec), dst_spec.slots)
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, SlotsSpec)
        self._copies.load(job_id, spans(dst_spec), src_spec.slots, expedited=expedited)
        return True

    def get_finished(self) -> list[TransferResult]:
        return self._copies.finished(TransferResult)

    def wait(self, job_ids: set[int]) -> None:
        self._copies.wait(job_ids)

    def shutdown(self) -> None:
        self._copies.close()


class CompositeOffloadingSpec(SpecOfConfig):
    """One offloading spec for the whole chain of a tier config."""

    def get_manager(self) -> Manager:
        return Manager(self._plugin.scheduler(group_of))

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        return Worker(self._copies(kv_caches))
