"""The vLLM plugin: `"spec_module_path": "kvtier.factory.vllm", "spec_name": "CompositeOffloadingSpec"`.

Its NVMe tier alone, below vLLM's own CPU tier: `"type": "KvtierNvmeTier"`, with the same `module_path`.

Importing this module imports nothing of vLLM; asking it for the spec picks the adapter for the generation
of vLLM's plugin interface that is installed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CompositeOffloadingSpec", "KvtierNvmeTier"]


def __getattr__(name: str) -> Any:
    if name == "CompositeOffloadingSpec":
        from .generations.installed import spec_class

        return spec_class()
    if name == "KvtierNvmeTier":
        from .native import KvtierNvmeTier

        return KvtierNvmeTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
