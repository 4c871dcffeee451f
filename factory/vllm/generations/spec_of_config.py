"""The spec where vLLM hands over its whole config: 0.21 to 0.25."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import OffloadingSpec

from .. import metrics
from ..facts import of_vllm_config
from ..options import composite_spec
from ..plugin import Plugin
from ..worker import CopyWorker
from .canonical import gpu_tier

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingMetricMetadata


class SpecOfConfig(OffloadingSpec):
    """One offloading spec for the whole chain of a tier config, without the roles that differ by release.

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
        composite_spec(extra_config)  # who only shows the metrics finds the same mistakes
        return metrics.definitions()

    def _copies(self, kv_caches: CanonicalKVCaches) -> CopyWorker:
        return self._plugin.worker(gpu_tier(kv_caches, self.block_size_factor))
