"""Servers that drive the plugin's adapters over stand-ins of vLLM, each by the rules of its generation.

All of them take the same calls, so that one trace can be replayed through each of them.
"""

from __future__ import annotations

import itertools
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import vllm_standins as standins

BLOCK_TOKENS = 16
BLOCKS = 32
LAYERS = ("model.layers.0.attn", "model.layers.1.attn")
ELEMENTS = 256  # of a block's keys, or of its values, in one layer
BLOCK_BYTES = len(LAYERS) * 2 * ELEMENTS * 4  # float32

Keys = Sequence[bytes]


class Stored(NamedTuple):
    """What a store was told to write, and where."""

    keys: list[bytes]
    slots: list[int]
    evicted: list[bytes]


class FlashBackend:
    """An attention backend that keeps keys and values apart."""

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int
    ) -> tuple[int, ...]:
        return 2, num_blocks, block_size, num_kv_heads, head_size


class StandinServer(ABC):
    """One rank and its scheduler in one process; blocks hold what the test writes into them."""

    def __init__(self, spec_class: type[Any], extra: dict[str, Any], model: Path) -> None:
        self.spec = self.make_spec(spec_class, extra, model)
        self.caches = {layer: torch.zeros(2, BLOCKS, BLOCK_TOKENS, 1, ELEMENTS // 16) for layer in LAYERS}
        self._jobs = itertools.count()
        self.make_worker()
        self.manager = self.spec.get_manager()

    def write(self, block: int, value: float) -> None:
        """Give a block a content, in all layers."""
        for cache in self.caches.values():
            cache[0, block] = value
            cache[1, block] = -value

    def holds(self, block: int, value: float) -> bool:
        return all(
            bool((cache[0, block] == value).all() and (cache[1, block] == -value).all())
            for cache in self.caches.values()
        )

    @abstractmethod
    def make_spec(self, spec_class: type[Any], extra: dict[str, Any], model: Path) -> Any: ...

    @abstractmethod
    def make_worker(self) -> None: ...

    @abstractmethod
    def lookup(self, request: str, keys: Keys) -> int | None:
        """How many leading keys hit; None to be asked again."""

    @abstractmethod
    def load(self, request: str, keys: Keys, blocks: list[int]) -> list[int]:
        """Load chunks into device blocks; returns their slots."""

    @abstractmethod
    def store(self, request: str, keys: Keys, blocks: list[int]) -> Stored:
        """Store chunks of device blocks, those that the plugin wants."""

    @abstractmethod
    def is_refused(self, request: str, keys: Keys) -> bool:
        """Offer chunks to a plugin that has no room; say whether they are to be offered again."""

    @abstractmethod
    def finish(self, request: str) -> None: ...

    @abstractmethod
    def close_worker(self) -> None: ...

    def end_step(self) -> None:
        """What the scheduler calls when the results of a step are there."""
        assert list(self.manager.take_events()) == []

    def drain(self) -> None:
        """Let everything stored reach the last tier."""
        side = self.manager._side
        side._lifetime.loop.submit(side.chain.mover.drain()).result(10)

    def pinned_slots(self) -> int:
        self.drain()
        return int(self.manager._side.chain.stats().pinned_slots)

    def close(self) -> None:
        self.close_worker()
        self.manager._side.close()


class VllmConfigs:
    """Makes the spec as vLLM does up to 0.25."""

    def make_spec(self, spec_class: type[Any], extra: dict[str, Any], model: Path) -> Any:
        return spec_class(vllm_config(extra, model), kv_cache_config())


def vllm_config(extra: dict[str, Any], model: Path, **parallel: int) -> Any:
    sizes = {"tensor": 1, "pipeline": 1, "prefill_context": 1, "decode_context": 1}
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(engine_id=str(uuid.uuid4()), kv_connector_extra_config=extra),
        model_config=SimpleNamespace(
            model=str(model), dtype=torch.float32, hf_config=None, quantization=None, seed=0
        ),
        load_config=SimpleNamespace(load_format="auto", model_loader_extra_config={}),
        cache_config=SimpleNamespace(cache_dtype="auto", block_size=BLOCK_TOKENS, calculate_kv_scales=False),
        kv_events_config=None,
        parallel_config=SimpleNamespace(
            rank=0,
            world_size=1,
            **{f"{axis}_parallel_size": parallel.get(axis, size) for axis, size in sizes.items()},
        ),
    )


def kv_cache_config(*specs: Any) -> Any:
    size_bytes = BLOCKS * BLOCK_BYTES // len(LAYERS)
    return SimpleNamespace(
        num_blocks=BLOCKS,
        kv_cache_groups=[
            SimpleNamespace(kv_cache_spec=spec, layer_names=list(LAYERS))
            for spec in specs or [standins.FullAttentionSpec(BLOCK_TOKENS)]
        ],
        kv_cache_tensors=[SimpleNamespace(size=size_bytes) for _ in LAYERS],
    )


def offloading_config(extra: dict[str, Any], model: Path) -> Any:
    """vLLM's `OffloadingConfig`, as it was in 0.26."""
    return SimpleNamespace(
        engine_id=str(uuid.uuid4()),
        extra_config=extra,
        groups=[SimpleNamespace(tokens_per_block=BLOCK_TOKENS, layer_names=LAYERS)],
        worker_kv_bytes_per_block=BLOCK_BYTES,
        enable_kv_cache_events=False,
        model=SimpleNamespace(name=str(model), dtype="float32"),
        cache=SimpleNamespace(tokens_per_hash=BLOCK_TOKENS, blocks_per_chunk=1),
        parallel=SimpleNamespace(rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1),
    )


class Routed(StandinServer):
    """A worker whose transfers go to handlers by their media."""

    def register(self, *caches: Any) -> None:
        self._handlers = {
            (source.medium(), target.medium()): handler
            for source, target, handler in self.spec.get_handlers(*caches)
        }

    def transfer(self, source: Any, target: Any) -> None:
        job = next(self._jobs)
        handler = self._handlers[source.medium(), target.medium()]
        assert handler.transfer_async(job, (source, target))
        handler.wait({job})
        (result,) = handler.get_finished()
        if isinstance(result, tuple):  # 0.14 and 0.15
            assert result == (job, True)
            return
        assert (result.job_id, result.success) == (job, True)
        assert result.transfer_type == (source.medium(), target.medium())

    def close_worker(self) -> None:
        next(iter(self._handlers.values())).shutdown()


class Keyed(StandinServer):
    """A manager that is asked about chunks by key, within a request's context."""

    def __init__(self, *arguments: Any) -> None:
        self._contexts: dict[str, Any] = {}
        super().__init__(*arguments)

    @abstractmethod
    def transfer(self, source: Any, target: Any) -> None: ...

    def context(self, request: str) -> Any:
        return self._contexts.setdefault(request, standins.ReqContext(request))

    def hit(self, answer: Any) -> bool | None:
        return {
            standins.LookupResult.HIT: True,
            standins.LookupResult.HIT_PENDING: None,
            standins.LookupResult.MISS: False,
        }[answer]

    def lookup(self, request: str, keys: Keys) -> int | None:
        hits, asks_again = 0, False
        for key in keys:
            hit = self.hit(self.manager.lookup(key, self.context(request)))
            if hit is False:
                break
            asks_again = asks_again or hit is None
            hits += 1
        return None if asks_again else hits

    def load(self, request: str, keys: Keys, blocks: list[int]) -> list[int]:
        context = self.context(request)
        source = self.manager.prepare_load(list(keys), context)
        self.transfer(source, standins.DeviceSpec(blocks, [len(blocks)], [0]))
        self.manager.complete_load(set(keys), context)
        return [int(slot) for slot in source.slots]

    def store(self, request: str, keys: Keys, blocks: list[int]) -> Stored:
        context = self.context(request)
        output = self.manager.prepare_store(list(keys), context)
        chosen = [blocks[keys.index(key)] for key in output.keys_to_store]
        if chosen:
            self.transfer(standins.DeviceSpec(chosen, [len(chosen)], [0]), output.store_spec)
            self.manager.complete_store(set(output.keys_to_store), context)
        return Stored(output.keys_to_store, output.store_spec.slots.tolist(), output.evicted_keys)

    def is_refused(self, request: str, keys: Keys) -> bool:
        return self.manager.prepare_store(list(keys), self.context(request)) is None

    def finish(self, request: str) -> None:
        self.manager.on_request_finished(self._contexts.pop(request))


def canonical(caches: dict[str, Any]) -> Any:
    """The caches as vLLM hands them over from 0.19 on."""
    halves = [half.view(BLOCKS, -1).view(torch.int8) for cache in caches.values() for half in cache.unbind(0)]
    return standins.CanonicalKVCaches(
        [standins.CanonicalKVCacheTensor(half, half.shape[1]) for half in halves],
        [[standins.CanonicalKVCacheRef(index, half.shape[1]) for index, half in enumerate(halves)]],
    )


class ServerE(VllmConfigs, Routed, Keyed):
    """0.23 and 0.24."""

    def make_worker(self) -> None:
        self.register(canonical(self.caches))

    def hit(self, answer: Any) -> bool | None:
        assert answer is None or isinstance(answer, bool)
        return answer


class ServerOldE(ServerE):
    """0.21, which neither names requests nor tells of their end."""

    def context(self, request: str) -> Any:
        return self._contexts.setdefault(request, standins.NamelessContext())

    def finish(self, request: str) -> None:
        del self._contexts[request]


class ServerF(VllmConfigs, Keyed):
    """0.25."""

    def lookup(self, request: str, keys: Keys) -> int | None:
        hits = super().lookup(request, keys)
        self.manager.on_schedule_end(standins.ScheduleEndContext([], []))
        return hits

    def make_worker(self) -> None:
        self._worker = self.spec.get_worker(canonical(self.caches))

    def transfer(self, source: Any, target: Any) -> None:
        job = next(self._jobs)
        is_store = isinstance(source, standins.DeviceSpec)
        submit = self._worker.submit_store if is_store else self._worker.submit_load
        assert submit(job, source, target)
        self._worker.wait({job})
        (result,) = self._worker.get_finished()
        assert (result.job_id, result.success) == (job, True)

    def close_worker(self) -> None:
        self._worker.shutdown()


class ServerG(ServerF):
    """0.26 and newer; both roles under a worker's current config."""

    def make_spec(self, spec_class: type[Any], extra: dict[str, Any], model: Path) -> Any:
        current: Any = sys.modules["vllm.config"]
        current.get_current_vllm_config_or_none = lambda: vllm_config(extra, model)
        return spec_class(offloading_config(extra, model))


class ServerB(VllmConfigs, Routed):
    """0.15 to 0.18: prompts, of which the scheduler tells nothing but their hashes."""

    def make_worker(self) -> None:
        self.register(self.caches, dict.fromkeys(self.caches, FlashBackend))

    def lookup(self, request: str, keys: Keys) -> int | None:
        self.manager.touch(iter(keys))
        answer: int | None = self.manager.lookup(iter(keys))
        return answer

    def load(self, request: str, keys: Keys, blocks: list[int]) -> list[int]:
        source = self.manager.prepare_load(iter(keys))
        self.transfer(source, standins.PlainDeviceSpec(blocks))
        self.manager.complete_load(set(keys))
        return [int(slot) for slot in source.slots]

    def store(self, request: str, keys: Keys, blocks: list[int]) -> Stored:
        output = self.manager.prepare_store(iter(keys))
        chosen = [blocks[keys.index(key)] for key in output.block_hashes_to_store]
        if chosen:
            self.transfer(standins.PlainDeviceSpec(chosen), output.store_spec)
            self.manager.complete_store(set(output.block_hashes_to_store))
        self.end_step()
        return Stored(
            output.block_hashes_to_store, output.store_spec.slots.tolist(), output.block_hashes_evicted
        )

    def is_refused(self, request: str, keys: Keys) -> bool:
        return self.manager.prepare_store(iter(keys)) is None

    def finish(self, request: str) -> None:
        """Nobody is told."""


class ServerC(ServerB):
    """0.19."""

    def make_worker(self) -> None:
        self.register(canonical(self.caches))
