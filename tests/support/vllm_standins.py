"""Stand-ins for vLLM's plugin interface, one generation at a time: its names and signatures, and no vLLM.

Each function returns modules by name, to be put into `sys.modules`. What is abstract in vLLM is abstract
here, so that an adapter that leaves a method out cannot be made.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Modules = dict[str, ModuleType]

OFFLOAD = "vllm.v1.kv_offload"


class FullAttentionSpec:
    """Layers that attend to all of the prompt."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size


class UniformTypeKVCacheSpecs:
    """Layers of one kind with pages of several sizes."""

    def __init__(self, block_size: int, kv_cache_specs: dict[str, Any]) -> None:
        self.block_size = block_size
        self.kv_cache_specs = kv_cache_specs


class MambaSpec:
    """Layers with a state instead of keys and values."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size


class LookupResult(Enum):
    MISS = auto()
    HIT = auto()
    HIT_PENDING = auto()
    RETRY = auto()


@dataclass
class ReqContext:
    req_id: str
    kv_transfer_params: dict[str, Any] | None = None


@dataclass
class NamelessContext:
    """What 0.21 has for `ReqContext`."""

    kv_transfer_params: dict[str, Any] | None = None


class RequestOffloadingContext:
    """How a request is offloaded; vLLM's default."""


class ScheduleEndContext(NamedTuple):
    new_req_ids: Sequence[str] = ()
    preempted_req_ids: Sequence[str] = ()


class StorageSpec(ABC):
    """`LoadStoreSpec` up to 0.25."""

    @staticmethod
    @abstractmethod
    def medium() -> str: ...


class PlainStorageSpec:
    """`LoadStoreSpec` from 0.26 on."""


class DeviceSpec:
    def __init__(
        self, block_ids: list[int], group_sizes: Sequence[int], block_indices: Sequence[int]
    ) -> None:
        self.block_ids = np.array(block_ids, np.int64)
        self.group_sizes = group_sizes
        self.block_indices = block_indices

    @staticmethod
    def medium() -> str:
        return "GPU"


class PlainDeviceSpec:
    def __init__(self, block_ids: list[int]) -> None:
        self.block_ids = np.array(block_ids, np.int64)

    @staticmethod
    def medium() -> str:
        return "GPU"


@dataclass
class PrepareStoreOutput:
    keys_to_store: list[bytes]
    store_spec: Any
    evicted_keys: list[bytes]


@dataclass
class HashesToStore:
    """What 0.14 to 0.18 have for `PrepareStoreOutput`."""

    block_hashes_to_store: list[bytes]
    store_spec: Any
    block_hashes_evicted: list[bytes]


@dataclass
class OffloadingEvent:
    keys: list[bytes]
    medium: str
    removed: bool


@dataclass
class HashesEvent:
    """What 0.14 to 0.18 have for `OffloadingEvent`."""

    block_hashes: list[bytes]
    block_size: int
    medium: str
    removed: bool


@dataclass
class TransferResult:
    job_id: int
    success: bool
    transfer_size: int | None = None
    transfer_time: float | None = None


@dataclass
class TypedTransferResult(TransferResult):
    """What there is while handlers are chosen by media."""

    transfer_type: tuple[str, str] | None = None


@dataclass
class CanonicalKVCacheTensor:
    tensor: Any
    page_size_bytes: int


@dataclass
class CanonicalKVCacheRef:
    tensor_idx: int
    page_size_bytes: int


@dataclass
class CanonicalKVCaches:
    tensors: list[CanonicalKVCacheTensor]
    group_data_refs: list[list[CanonicalKVCacheRef]]


class Handler(ABC):
    """`OffloadingHandler`."""

    @abstractmethod
    def transfer_async(self, job_id: int, spec: Any) -> bool: ...
    @abstractmethod
    def get_finished(self) -> list[TypedTransferResult]: ...
    @abstractmethod
    def wait(self, job_ids: set[int]) -> None: ...


class Worker(ABC):
    """`OffloadingWorker` from 0.25 on."""

    @abstractmethod
    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool: ...
    @abstractmethod
    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool: ...
    @abstractmethod
    def get_finished(self) -> list[TransferResult]: ...
    @abstractmethod
    def wait(self, job_ids: set[int]) -> None: ...


class PromptManager(ABC):
    """`OffloadingManager` of 0.15 to 0.18."""

    @abstractmethod
    def lookup(self, block_hashes: Any) -> int | None: ...
    @abstractmethod
    def prepare_load(self, block_hashes: Any) -> Any: ...
    @abstractmethod
    def prepare_store(self, block_hashes: Any) -> Any: ...


class ImpatientManager(PromptManager):
    """`OffloadingManager` of 0.14, which cannot be told to ask again."""

    @abstractmethod
    def lookup(self, block_hashes: Any) -> int: ...


class ChunkManager(ABC):
    """`OffloadingManager` of 0.21 and 0.22."""

    @abstractmethod
    def lookup(self, key: bytes, req_context: Any) -> Any: ...
    @abstractmethod
    def prepare_load(self, keys: Any, req_context: Any) -> Any: ...
    @abstractmethod
    def prepare_store(self, keys: Any, req_context: Any) -> Any: ...


class AttentiveManager(ChunkManager):
    """`OffloadingManager` from 0.23 on, which is told when requests begin and end."""

    @abstractmethod
    def on_new_request(self, req_context: Any) -> Any: ...
    def on_request_finished(self, req_context: Any) -> None: ...


class _Spec(ABC):
    """`OffloadingSpec` up to 0.25."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any) -> None:
        self.vllm_config = vllm_config
        self.kv_cache_config = kv_cache_config
        self.extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
        block_tokens = vllm_config.cache_config.block_size
        self.gpu_block_size: Any = (block_tokens,)
        self.hash_block_size = block_tokens
        self.block_size_factor = int(self.extra_config.get("block_size", block_tokens)) // block_tokens

    @abstractmethod
    def get_manager(self) -> Any: ...


class RawSpec(_Spec):
    @abstractmethod
    def get_handlers(self, kv_caches: Any, attn_backends: Any) -> Any: ...


class HandlersSpec(_Spec):
    @abstractmethod
    def get_handlers(self, kv_caches: Any) -> Any: ...


class WorkerSpec(_Spec):
    @abstractmethod
    def get_worker(self, kv_caches: Any) -> Any: ...


class ConfiguredSpec(ABC):
    """`OffloadingSpec` from 0.26 on."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.extra_config = config.extra_config
        self.blocks_per_chunk = config.cache.blocks_per_chunk

    @abstractmethod
    def get_manager(self) -> Any: ...
    @abstractmethod
    def get_worker(self, kv_caches: Any) -> Any: ...


def generation_b(*, can_wait: bool = True) -> Modules:
    """0.14 (which cannot wait) to 0.18."""
    return _modules(
        {
            f"{OFFLOAD}.abstract": {
                "LoadStoreSpec": StorageSpec,
                "OffloadingManager": PromptManager if can_wait else ImpatientManager,
                "OffloadingEvent": HashesEvent,
                "PrepareStoreOutput": HashesToStore,
            },
            f"{OFFLOAD}.mediums": {"GPULoadStoreSpec": PlainDeviceSpec},
            f"{OFFLOAD}.spec": {"OffloadingSpec": RawSpec},
            f"{OFFLOAD}.worker": {},
            f"{OFFLOAD}.worker.worker": {
                "OffloadingHandler": Handler,
                "TransferResult": TypedTransferResult if can_wait else tuple[int, bool],
            },
        }
    )


def generation_c() -> Modules:
    """0.19."""
    modules = generation_b()
    members = {"OffloadingSpec": HandlersSpec, "CanonicalKVCaches": CanonicalKVCaches}
    return modules | {f"{OFFLOAD}.spec": _module(f"{OFFLOAD}.spec", members)}


def generation_e(*, tells_ends: bool = True) -> Modules:
    """0.21 (which does not tell when requests end) to 0.24."""
    return _modules(
        {
            f"{OFFLOAD}.base": {
                **_base(StorageSpec, HandlersSpec),
                "OffloadingManager": AttentiveManager if tells_ends else ChunkManager,
                "ReqContext": ReqContext if tells_ends else NamelessContext,
            },
            f"{OFFLOAD}.worker": {},
            f"{OFFLOAD}.worker.worker": {"OffloadingHandler": Handler, "TransferResult": TypedTransferResult},
        }
    )


def generation_f() -> Modules:
    """0.25."""
    return _modules({f"{OFFLOAD}.base": {**_base(StorageSpec, WorkerSpec), **_WORKER}})


def generation_g() -> Modules:
    """0.26 and newer."""
    return _modules(
        {f"{OFFLOAD}.base": {**_base(PlainStorageSpec, ConfiguredSpec), **_WORKER}, f"{OFFLOAD}.config": {}}
    )


def unsupported(kind: str) -> Modules:
    """What kvtier has no adapter for."""

    class OldSpec:
        def __init__(self, vllm_config: Any) -> None: ...

    contents: dict[str, dict[str, dict[str, Any]]] = {
        "0.13": {f"{OFFLOAD}.abstract": {}, f"{OFFLOAD}.spec": {"OffloadingSpec": OldSpec}},
        "0.20": {f"{OFFLOAD}.abstract": {"OffloadKey": bytes}, f"{OFFLOAD}.spec": {}},
        "none": {},
    }
    return _modules(contents[kind])


_WORKER = {"LookupResult": LookupResult, "OffloadingWorker": Worker, "TransferResult": TransferResult}


def _base(storage: type, spec: type) -> dict[str, Any]:
    return {
        "CanonicalKVCaches": CanonicalKVCaches,
        "GPULoadStoreSpec": DeviceSpec,
        "LoadStoreSpec": storage,
        "OffloadKey": bytes,
        "OffloadingEvent": OffloadingEvent,
        "OffloadingManager": AttentiveManager,
        "OffloadingSpec": spec,
        "PrepareStoreOutput": PrepareStoreOutput,
        "ReqContext": ReqContext,
        "RequestOffloadingContext": RequestOffloadingContext,
        "ScheduleEndContext": ScheduleEndContext,
    }


def _modules(contents: dict[str, dict[str, Any]]) -> Modules:
    """Make the modules and the packages that they lie in; a package finds nothing that is not among them."""
    interface = {
        "FullAttentionSpec": FullAttentionSpec,
        "UniformTypeKVCacheSpecs": UniformTypeKVCacheSpecs,
    }
    contents = {
        "vllm": {"__version__": "0.0.0"},
        "vllm.config": {"get_current_vllm_config_or_none": lambda: None},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.core.kv_cache_utils": {},
        "vllm.v1.kv_cache_interface": interface,
        **({OFFLOAD: {}} if contents else {}),
        **contents,
    }
    return {name: _module(name, members) for name, members in contents.items()}


def _module(name: str, members: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    for member, value in members.items():
        setattr(module, member, value)
    return module


Standins = Callable[[], Modules]
