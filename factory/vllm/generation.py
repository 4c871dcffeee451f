"""Which generation of vLLM's plugin interface is installed: by what is there, never by a version string."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ...tiers.errors import ConfigError


def spec_class() -> Any:
    """Return the offloading spec for the installed vLLM.

    Raises:
        ConfigError: it has no interface that kvtier supports; the message says what was found.
    """
    if _has("vllm.v1.kv_offload.config"):
        from .generation_g import CompositeOffloadingSpec

        return CompositeOffloadingSpec
    found = "an older offloading interface" if _has("vllm.v1.kv_offload") else "no offloading interface"
    raise ConfigError(
        "spec_module_path", f"this vLLM has {found}; kvtier's plugin supports vLLM 0.26 to 0.33"
    )


def _has(module: str) -> bool:
    """Say whether a module exists; an error inside one that exists is not hidden."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return False
        raise
