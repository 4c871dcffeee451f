"""The plugin for vLLM 0.26 to 0.33, whose specs are built from an `OffloadingConfig`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import OffloadingSpec

from ....engine.events import EventLog
from .. import metrics
from ..events import TELLS_FAILURES, ServerEvents, failure_event
from ..facts import of_offloading_config
from ..options import composite_spec
from ..plugin import Plugin
from ..served import served_here
from ..telling.facts import LABELS, Value
from . import f as generation_f
from .canonical import gpu_tier
from .f import Worker
from .manager import SlotsSpec, group_of

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingMetricMetadata, OffloadKey, ReqContext
    from vllm.v1.kv_offload.config import OffloadingConfig

__all__ = ["CompositeOffloadingSpec", "Manager", "SlotsSpec", "Worker"]


@functools.cache
def _hit_source(tier: str) -> Any:
    # Asked for from 0.32 on, where the module that names the sources is there.
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    if not tier:
        return CacheHitSource.EXTERNAL_UNSPECIFIED
    return CacheHitSource.HOST if tier == "pinned" else CacheHitSource.DISK


class Manager(generation_f.Manager):
    """Runs in the scheduler."""

    def take_events(self) -> Iterator[Any]:
        yield from super().take_events()
        log = self._side.events
        # Who has tried again since has described the blocks again.
        failed = self._side.chain.without_slot(log.take_failed()) if isinstance(log, ServerEvents) else ()
        if failed:
            yield failure_event(failed)

    def config_info(self) -> list[Mapping[str, Value]]:
        return [tier.labels() for tier in self._side.tiers]

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> Any:
        return _hit_source(self._placement.source(self._request(req_context), key))


class CompositeOffloadingSpec(OffloadingSpec):
    """One offloading spec for the whole chain of a tier config.

    Raises:
        ConfigError: the document under ``kvtier`` is missing or wrong, or the server asks for a layout of
            chunks that kvtier does not have.
    """

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        facts = of_offloading_config(config, served=served_here())
        self.replicated_layout = facts.is_replicated  # vLLM reads it: then only the first rank stores
        self._plugin = Plugin(facts)

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        composite_spec(extra_config)  # who only shows the metrics finds the same mistakes
        return metrics.definitions()

    @classmethod
    def config_info_keys(cls, extra_config: dict[str, Any]) -> tuple[str, ...]:
        return LABELS

    def get_manager(self) -> Manager:
        log = ServerEvents if TELLS_FAILURES else EventLog
        return Manager(self._plugin.scheduler(group_of, log))

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        return Worker(self._plugin.worker(gpu_tier(kv_caches, self.blocks_per_chunk)))
