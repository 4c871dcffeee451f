"""A real server records its prompts, and a replay of the record predicts what the server did."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import BLOCK_TOKENS, crowd
from vllm_phases import MakeServer
from vllm_server import tier_document

from kvtier.engine.replay.replay import replay
from kvtier.engine.replay.tiers import SlotsWithoutBytes
from kvtier.engine.replay.trace import read_trace
from kvtier.tiers.pinned.eviction import POLICIES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SLOTS = 24
BLOCKS = 8  # of a prompt
CHUNK_BYTES = BLOCK_TOKENS * 4 * 2 * 256 * 4  # four layers of keys and values in float32


def test_a_replay_of_what_a_server_has_recorded_predicts_its_hits(
    make_server: MakeServer, directory: Path
) -> None:
    prompts = crowd(6, tokens=BLOCKS * BLOCK_TOKENS + 1)
    traffic = [*prompts, *prompts[::-1], prompts[0]]
    trace = directory.parent / "trace.jsonl"
    tiers = {**tier_document(pinned=SLOTS * CHUNK_BYTES), "trace": str(trace)}
    with make_server(tiers=tiers) as server:
        server.generate(traffic, forget=True)
        served = server.drain().total("kvtier:lookup_hits")
        server.generate([prompts[0], prompts[0][: 4 * BLOCK_TOKENS + 1], prompts[1]])  # the device has parts
        server.drain()
    recorded = read_trace(trace)
    assert recorded.left_out == 0
    assert [len(keys) for keys in recorded.requests] == [
        *[BLOCKS] * len(traffic),
        BLOCKS,
        4,
        BLOCKS,
    ]
    assert recorded.requests[0] == recorded.requests[len(traffic) - 1] == recorded.requests[-3]
    assert recorded.requests[0][:4] == recorded.requests[-2] == recorded.requests[-1][:4]
    assert recorded.sizes is not None
    assert recorded.sizes.chunk_bytes == CHUNK_BYTES
    assert recorded.sizes.tokens_per_id == recorded.sizes.chunk_tokens == BLOCK_TOKENS
    slots = SlotsWithoutBytes(SLOTS, slot_bytes=CHUNK_BYTES, make_policy=POLICIES["reuse"])
    predicted = replay(recorded.requests[: len(traffic)], slots, [], lambda _: None, step_chunks=None)
    # A server never uses the last block of a prompt that it has whole: one token is always computed.
    assert served > 0
    assert predicted.hits_chunks == pytest.approx(served, rel=0.1)
