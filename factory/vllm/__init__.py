"""The vLLM plugin: `"spec_module_path": "kvtier.factory.vllm", "spec_name": "CompositeOffloadingSpec"`.

To use only its NVMe tier, below vLLM's own CPU tier: `"type": "KvtierNvmeTier"`, with the same `module_path`.

Importing this module imports nothing of vLLM. Accessing the spec picks the adapter for the installed
generation of vLLM's plugin interface.
"""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["CompositeOffloadingSpec", "KvtierConnector", "KvtierNvmeTier"]


def __getattr__(name: str) -> Any:
    if name == "CompositeOffloadingSpec":
        from .generations.installed import spec_class

        return spec_class()
    if name == "KvtierConnector":
        from .generations.connector import KvtierConnector

        return KvtierConnector
    if name == "KvtierNvmeTier":
        from .native import KvtierNvmeTier

        return KvtierNvmeTier
    near = difflib.get_close_matches(name, __all__, n=1)
    meant = f"; did you mean {near[0]!r}?" if near and not name.startswith("__") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant}")
