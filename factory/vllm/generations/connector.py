"""vLLM's connector, which refuses a mistake in kvtier's options before the model's weights are loaded.

vLLM makes an offloading spec once the weights are loaded. Earlier, in the front end, it asks the connector
whether CUDA graphs have to be split around it, and hands it the options: on a GPU, unless graphs are off.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from ..options import composite_spec


class KvtierConnector(OffloadingConnector):
    """vLLM's own, but for when mistakes are found.

    Raises:
        ConfigError: from `requires_piecewise_for_cudagraph`; the options or the document are wrong.
    """

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        composite_spec(extra_config)
        return bool(super().requires_piecewise_for_cudagraph(extra_config))
