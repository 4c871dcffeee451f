"""A prompt that the real vLLM computes in many steps keeps its head under pressure."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import BLOCK_TOKENS, crowd
from vllm_phases import MakeServer
from vllm_server import tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SLOTS = 18
BLOCKS = 16  # of the prompt that is looked at
OTHERS = 4  # prompts of one block each
CHUNK_BYTES = BLOCK_TOKENS * 4 * 2 * 256 * 4  # four layers of keys and values in float32

TWO_BLOCKS_A_STEP = {"max_model_len": 4096, "max_num_batched_tokens": 2 * BLOCK_TOKENS}


def test_a_prompt_of_eight_steps_outlives_what_comes_after_it_but_for_its_tail(
    make_server: MakeServer, directory: Path
) -> None:
    (prompt, _) = crowd(2, tokens=BLOCKS * BLOCK_TOKENS + 1)
    others = [tokens[: BLOCK_TOKENS + 1] for tokens in crowd(2 * OTHERS, tokens=2 * BLOCK_TOKENS)[::2]]
    tiers = tier_document(pinned=SLOTS * CHUNK_BYTES)
    with make_server(tiers=tiers, engine=TWO_BLOCKS_A_STEP) as server:
        server.generate([prompt], forget=True)
        server.drain()
        for other in others:
            server.generate([other], forget=True)
        drained = server.drain()
        (again,) = server.generate([prompt], forget=True)
        after = server.drain()
    assert drained.total("kvtier:capacity_bytes", tier="pinned") == SLOTS * CHUNK_BYTES
    assert drained.total("kvtier:removed_chunks", tier="pinned", reason="evicted") > 0
    assert again.cached_tokens >= (BLOCKS - 2) * BLOCK_TOKENS
    assert after.total("kvtier:dropped_chunks") == 0
