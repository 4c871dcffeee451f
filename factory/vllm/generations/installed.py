"""Detects the installed generation of vLLM's plugin interface by its features, never by a version."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

from ....tiers.errors import ConfigError

SUPPORTED = "vLLM 0.14 to 0.19 and 0.21 to 0.33"


def spec_class() -> Any:
    """Return the offloading spec for the installed vLLM.

    Raises:
        ConfigError: it has no interface that kvtier supports; the message says what was found.
    """
    return import_module(_adapter(), __package__).CompositeOffloadingSpec


def _adapter() -> str:
    """The module of the adapter."""
    if _has("vllm.v1.kv_offload.config"):
        return ".g"
    if _has("vllm.v1.kv_offload.base"):
        has_worker = hasattr(import_module("vllm.v1.kv_offload.base"), "OffloadingWorker")
        return ".f" if has_worker else ".e"
    if not _has("vllm.v1.kv_offload.spec"):
        raise _unsupported(
            "this vLLM has no offloading interface" if _has("vllm") else "vLLM is not installed"
        )
    if hasattr(import_module("vllm.v1.kv_offload.abstract"), "OffloadKey"):
        raise _unsupported("this vLLM has the offloading interface of 0.20")
    spec = import_module("vllm.v1.kv_offload.spec")
    if hasattr(spec, "CanonicalKVCaches"):
        return ".c"
    if len(signature(spec.OffloadingSpec).parameters) == 2:
        return ".b"
    raise _unsupported("this vLLM has the offloading interface of 0.13 and older")


def _unsupported(found: str) -> ConfigError:
    return ConfigError("spec_module_path", f"{found}; kvtier's plugin supports {SUPPORTED}")


def _has(module: str) -> bool:
    """Say whether a module exists; an error inside one that exists is not hidden."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return False
        raise
