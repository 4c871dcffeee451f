"""What stands beside kvtier's document in vLLM's `kv_connector_extra_config`."""

from __future__ import annotations

from typing import Any

import pytest

from kvtier.factory.vllm.options import composite_spec
from kvtier.tiers.errors import ConfigError

DOCUMENT = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}]}


def test_options_of_the_plugin_may_stand_beside_the_document() -> None:
    composite_spec({"kvtier": DOCUMENT, "spec_name": "kvtier", "blocks_per_chunk": 4})


@pytest.mark.xfail(reason="keys beside the document are not looked at")
@pytest.mark.parametrize(
    "beside",
    [{"weights_epoch": 3}, {"on_reset": "keep"}, {"blocks_per_chunks": 16}, {"offload_prompts_only": True}],
    ids=lambda beside: next(iter(beside)),
)
def test_what_belongs_inside_the_document_or_is_misspelt_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        composite_spec({"kvtier": DOCUMENT, **beside})
