"""The vLLM plugin: `"spec_module_path": "kvtier.factory.vllm", "spec_name": "CompositeOffloadingSpec"`.

Importing this module imports nothing of vLLM; asking it for the spec picks the adapter for the generation
of vLLM's plugin interface that is installed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CompositeOffloadingSpec"]


def __getattr__(name: str) -> Any:
    if name == "CompositeOffloadingSpec":
        from .generation import spec_class

        return spec_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
