"""The plugin for vLLM 0.14 to 0.18, whose managers look up whole prompts instead of chunks.

This adapter finds out what the interface does not say:

- Which request chunks belong to. Its last block hash stands for a whole prompt, so it names the request, and
  what the request holds is leased. A load follows its lookup within the same step of the scheduler. A store
  belongs to the prompt that has its chunks; what was generated is a prompt of its own.
- When a store has ended. vLLM reports it at the end of the request only, and after a preemption too early.
  The workers' marks in the arena are timely and right; each step reads them.
- When weights change. There is no reset; raise `weights_epoch`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs
from vllm.v1.kv_offload.abstract import (
    LoadStoreSpec,
    OffloadingEvent,
    OffloadingManager,
    PrepareStoreOutput,
)
from vllm.v1.kv_offload.mediums import GPULoadStoreSpec
from vllm.v1.kv_offload.spec import OffloadingSpec

from ....engine.movement.placement import Presence
from ....tiers.device.copyplan import Spans
from ....tiers.device.gpu import GpuTier
from ....tiers.errors import ConfigError
from ..facts import of_vllm_config
from ..plugin import Plugin
from ..server import SchedulerSide
from ..worker import CopyWorker
from .handler import Handler
from .leases import Leases
from .owners import Owners
from .raw import raw_gpu_tier

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.kv_cache_interface import KVCacheConfig

_WHERE = "spec_module_path"
_LATER = "kvtier supports only full attention on this vLLM; use vLLM 0.21 or newer"

_WAITS = frozenset({Presence.PENDING, Presence.ASKING})

# 0.14 has no "ask again later".
_CAN_WAIT = "None" in str(signature(OffloadingManager.lookup).return_annotation)


class SlotsSpec(LoadStoreSpec):
    """Which slots a job reads or writes; travels by pickle from the scheduler to the workers."""

    def __init__(self, slots: list[int]) -> None:
        self.slots = np.array(slots, np.int32)

    @staticmethod
    def medium() -> str:
        return "CPU"


class Manager(OffloadingManager):
    """Runs in the scheduler. No call waits for a drive or a device, and none raises for their faults."""

    def __init__(self, side: SchedulerSide, block_tokens: int) -> None:
        self._side = side
        self._placement = side.placement
        self._block_tokens = block_tokens
        self._leases = Leases(self._placement.let_go)
        self._owners = Owners(self._placement.forget)
        side.tells_no_ends()
        # Mutable state:
        self._asked = ""  # the prompt of the latest lookup
        self._load_numbers = itertools.count()
        self._loads: defaultdict[frozenset[bytes], list[str]] = defaultdict(list)

    def lookup(self, block_hashes: Iterable[BlockHash]) -> int | None:
        keys = list(block_hashes)
        if not keys:
            return 0
        self._asked = self._owners.asked(keys)
        self._leases.renew(self._asked)
        hits, waits = 0, False
        ends = {key: number * self._block_tokens for number, key in enumerate(keys, start=1)}
        for key in keys:
            presence = self._placement.lookup(self._asked, key, ends=ends)
            waits = waits or presence in _WAITS
            if not (presence is Presence.READY or presence in _WAITS) or (waits and not _CAN_WAIT):
                break
            hits += 1
        self._placement.scheduled()  # nothing else says when a step has asked all
        return None if waits and _CAN_WAIT else hits

    def prepare_load(self, block_hashes: Iterable[BlockHash]) -> LoadStoreSpec:
        keys = list(block_hashes)
        load = f"load {next(self._load_numbers)}"
        self._leases.release(self._asked)
        self._loads[frozenset(keys)].append(load)
        return SlotsSpec(self._placement.prepare_load(self._asked, keys, load=load))

    def complete_load(self, block_hashes: Iterable[BlockHash]) -> None:
        keys = frozenset(block_hashes)
        loads = self._loads[keys]
        self._placement.complete_load(loads.pop(), keys)
        if not loads:
            del self._loads[keys]

    def prepare_store(self, block_hashes: Iterable[BlockHash]) -> PrepareStoreOutput | None:
        keys = list(block_hashes)
        if not keys:
            return PrepareStoreOutput([], SlotsSpec([]), [])
        plan = self._placement.prepare_store(self._owners.storing(keys), keys)
        if plan is None:
            return None
        return PrepareStoreOutput(plan.keys, SlotsSpec(plan.slots), plan.evicted)

    def complete_store(self, block_hashes: Iterable[BlockHash], success: bool = True) -> None:
        """Nothing: see `take_events`."""

    def touch(self, block_hashes: Iterable[BlockHash]) -> None:
        keys = list(block_hashes)
        if keys:
            self._placement.touch(self._owners.asked(keys), keys)

    def take_events(self) -> Iterable[OffloadingEvent]:
        # The one call that vLLM makes in every step, after the workers' part.
        self._placement.complete_ended_stores()
        self._placement.step_ended()
        for event in self._side.events.take() if self._side.events is not None else ():
            yield OffloadingEvent(
                block_hashes=list(event.keys),
                block_size=self._block_tokens,
                medium="CPU" if event.tier == "pinned" else "STORAGE",
                removed=event.removed is not None,
            )


class BlockHandler(Handler):
    """Device blocks without groups. A load may start in the middle of a chunk; a store never does."""

    def __init__(self, copies: CopyWorker, blocks_per_chunk: int) -> None:
        super().__init__(copies, GPULoadStoreSpec)
        self._blocks_per_chunk = blocks_per_chunk

    def spans(self, spec: GPULoadStoreSpec, slots_count: int) -> Spans:
        blocks = len(spec.block_ids)
        return Spans(spec.block_ids, (blocks,), (slots_count * self._blocks_per_chunk - blocks,))


class PromptSpec(OffloadingSpec):
    """The spec, except for its tensors.

    Raises:
        ConfigError: the document under ``kvtier`` is missing or wrong, or the model or its parallel sizes
            are not supported on this vLLM.
    """

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig | None) -> None:
        super().__init__(vllm_config, kv_cache_config)
        layers = _only_group(vllm_config, kv_cache_config)
        # The base class's own figures have other names and shapes in 0.18.
        block_tokens = int(layers.block_size)
        self._chunk_tokens = int(self.extra_config.get("block_size", block_tokens))
        self.blocks_per_chunk = self._chunk_tokens // block_tokens
        facts = of_vllm_config(
            vllm_config,
            kv_cache_config,
            tokens_per_block=[block_tokens],
            blocks_per_chunk=self.blocks_per_chunk,
            tokens_per_hash=block_tokens,
        )
        self._plugin = Plugin(facts)

    def get_manager(self) -> Manager:
        return Manager(self._plugin.scheduler(), self._chunk_tokens)

    def handlers_over(self, gpu: GpuTier) -> Iterator[tuple[type[Any], type[Any], Handler]]:
        """Yield both directions of a worker, as vLLM registers them."""
        handler = BlockHandler(self._plugin.worker(gpu), self.blocks_per_chunk)
        yield GPULoadStoreSpec, SlotsSpec, handler
        yield SlotsSpec, GPULoadStoreSpec, handler


class CompositeOffloadingSpec(PromptSpec):
    """One offloading spec for the whole chain of a tier config."""

    def get_handlers(
        self, kv_caches: Mapping[str, Any], attn_backends: Mapping[str, Any]
    ) -> Iterator[tuple[type[Any], type[Any], Handler]]:
        gpu = raw_gpu_tier(
            kv_caches,
            attn_backends,
            num_blocks=self.kv_cache_config.num_blocks,
            blocks_per_chunk=self.blocks_per_chunk,
        )
        return self.handlers_over(gpu)


def _only_group(vllm_config: Any, kv_cache_config: Any) -> Any:
    """Return the spec of the only group of layers; refuse models that this interface is too small for."""
    if kv_cache_config is None:
        raise ConfigError(_WHERE, "kvtier needs a KV-cache config, and the connector was built without one")
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if len(specs) != 1:
        raise ConfigError(_WHERE, f"{_LATER}; this model has {len(specs)} groups of layers")
    (group,) = specs
    layers = group.kv_cache_specs.values() if isinstance(group, UniformTypeKVCacheSpecs) else specs
    others = {type(layer).__name__ for layer in layers if not isinstance(layer, FullAttentionSpec)}
    if others:
        raise ConfigError(_WHERE, f"{_LATER}; this model has layers of {', '.join(sorted(others))}")
    for axis in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(vllm_config.parallel_config, axis, 1) != 1:
            raise ConfigError(_WHERE, f"{_LATER}; {axis} is not 1")
    return group
