"""Which generation of vLLM's plugin interface is installed: by what is there, never by a version string."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

from ...tiers.errors import ConfigError

SUPPORTED = "vLLM 0.14 to 0.19 and 0.21 to 0.33"


def spec_class() -> Any:
    """Return the offloading spec for the installed vLLM.

    Raises:
        ConfigError: it has no interface that kvtier supports; the message says what was found.
    """
    module, found = _adapter()
    if module is None:
        raise ConfigError("spec_module_path", f"this vLLM has {found}; kvtier's plugin supports {SUPPORTED}")
    return import_module(module, __package__).CompositeOffloadingSpec


def _adapter() -> tuple[str | None, str]:
    """The adapter's module, if there is one, and what was found in words."""
    if _has("vllm.v1.kv_offload.config"):
        return ".generation_g", "specs with a config of their own"
    if _has("vllm.v1.kv_offload.base"):
        base = import_module("vllm.v1.kv_offload.base")
        if hasattr(base, "OffloadingWorker"):
            return ".generation_f", "workers that take stores and loads"
        return ".generation_e", "handlers for several groups of layers"
    if not _has("vllm.v1.kv_offload.spec"):
        return None, "no offloading interface" if _has("vllm") else "not been found"
    if hasattr(import_module("vllm.v1.kv_offload.abstract"), "OffloadKey"):
        return None, "the offloading interface of 0.20"
    spec = import_module("vllm.v1.kv_offload.spec")
    if hasattr(spec, "CanonicalKVCaches"):
        return ".generation_c", "handlers for one group of layers"
    if len(signature(spec.OffloadingSpec.__init__).parameters) == 2:
        return None, "the offloading interface of 0.13 and older"
    return ".generation_b", "handlers for raw tensors"


def _has(module: str) -> bool:
    """Say whether a module exists; an error inside one that exists is not hidden."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return False
        raise
