"""The plugin for vLLM 0.25. Its manager and its worker serve the later releases too; its spec does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import LookupResult, OffloadingSpec, OffloadingWorker, TransferResult

from ...engine.placement import Presence
from . import metrics
from .canonical import gpu_tier, spans
from .facts import of_vllm_config
from .manager import KeyedManager, SlotsSpec, tiers_of
from .plugin import Plugin
from .worker import CopyWorker

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.kv_offload.base import (
        CanonicalKVCaches,
        GPULoadStoreSpec,
        LoadStoreSpec,
        OffloadingMetricMetadata,
        OffloadKey,
        ReqContext,
        ScheduleEndContext,
    )

_RESULT = {
    Presence.READY: LookupResult.HIT,
    Presence.PENDING: LookupResult.HIT_PENDING,
    Presence.LATE: LookupResult.MISS,
    Presence.FULL: LookupResult.MISS,
    Presence.MISS: LookupResult.MISS,
}


class Manager(KeyedManager):
    """Runs in the scheduler."""

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        return _RESULT[self._placement.lookup(self._request(req_context), key, tiers_of(req_context))]

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._placement.sweep()


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
        return [TransferResult(*finished) for finished in self._copies.finished()]

    def wait(self, job_ids: set[int]) -> None:
        self._copies.wait(job_ids)

    def shutdown(self) -> None:
        self._copies.close()


class CompositeOffloadingSpec(OffloadingSpec):
    """One offloading spec for the whole chain of a tier config.

    Raises:
        ConfigError: the document under ``kvtier`` is missing or wrong.
    """

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, kv_cache_config)
        facts = of_vllm_config(
            vllm_config,
            kv_cache_config,
            tokens_per_block=self.gpu_block_size,
            blocks_per_chunk=self.block_size_factor,
            tokens_per_hash=self.hash_block_size,
        )
        self._plugin = Plugin(facts)

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return metrics.definitions()

    def get_manager(self) -> Manager:
        return Manager(self._plugin.scheduler())

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        return Worker(self._plugin.worker(gpu_tier(kv_caches, self.block_size_factor)))
