"""What is worked out from a model's `config.json` alone is what the real vLLM then does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from vllm_phases import MakeServer
from vllm_server import tier_document

from kvtier.factory.sizing.layout import Parallel, layout_of
from kvtier.factory.sizing.model import model_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

ENGINES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "gemma": {"disable_hybrid_kv_cache_manager": False},
    "deepseek": {},
}


@pytest.mark.parametrize("shape", ENGINES)
def test_a_block_is_as_large_as_the_file_of_the_model_says(
    shape: str, make_server: MakeServer, directory: Path
) -> None:
    store = directory / f"nvme-sizing-{shape}"
    tiers = tier_document(pinned="64MiB", nvme=store)
    with make_server(shape=shape, tiers=tiers, engine=ENGINES[shape]) as server:
        server.kill()
    fields = dict(json.loads(next((store / "namespaces").iterdir()).read_text())["fields"])
    groups = [group.split(":")[1] for group in fields["groups"].split(" ")]
    block_tokens = int(groups[0].removesuffix("tok"))  # what was asked for, or what the kernel can do
    document = json.loads((directory / f"model-{shape}" / "config.json").read_text())
    layout = layout_of(model_of(document, kv_dtype="float32"), Parallel(), block_tokens=block_tokens)
    assert fields["bytes_per_block"] == str(layout.rank_block_bytes)
    assert groups == [f"{block_tokens}tok"] * layout.groups_count
    assert layout.groups_count == (3 if shape == "gemma" else 1)
