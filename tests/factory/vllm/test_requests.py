"""What a request asks for itself, and what a reset does, in the real vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prompts import Prompt
from vllm_phases import MakeServer
from vllm_server import Answer, Server, tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BLOCK_TOKENS = 128
SOME = 4 * BLOCK_TOKENS  # less than any prompt has
FEWER = 2 * BLOCK_TOKENS


def document(path: Path, **more: Any) -> dict[str, Any]:
    return {**tier_document(pinned="128MiB", nvme=path), **more}


@pytest.fixture(scope="module")
def server(make_server: MakeServer, directory: Path) -> Iterator[Server]:
    with make_server(tiers=document(directory / "nvme-requests")) as server:
        yield server


def asked(
    server: Server, prompt: Prompt, controls: Mapping[str, Any] | None = None, salt: str | None = None
) -> Answer:
    (answer,) = server.generate([prompt], forget=True, controls=controls, salt=salt)
    server.drain()
    return answer


def test_a_request_limits_what_is_stored_and_what_is_loaded_and_from_where(
    server: Server, prompts: list[Prompt]
) -> None:
    prompt = prompts[0]
    cold = asked(server, prompt, {"max_offload_tokens": SOME})
    none_stored = {"max_offload_tokens": 0}
    for controls, cached_tokens in (
        ({}, SOME),
        ({"max_load_tokens": FEWER}, FEWER),
        ({"kv_load_tiers": []}, SOME),
        ({"kv_load_tiers": [{"medium": "cpu"}]}, SOME),
        ({"kv_load_tiers": [{"medium": "storage"}]}, SOME),
        ({"kv_load_tiers": [{"medium": "storage", "locality": "remote"}]}, SOME),
    ):
        answer = asked(server, prompt, {**none_stored, **controls})
        assert (answer.cached_tokens, answer.tokens) == (cached_tokens, cold.tokens), controls
    assert server.samples().total("kvtier:pinned_slots") == 0


def test_a_salt_keeps_the_chunks_of_a_request_to_itself(server: Server, prompts: list[Prompt]) -> None:
    prompt = prompts[2]
    mine, again, other = (asked(server, prompt, salt=salt) for salt in ("mine", "mine", "other"))
    assert mine.tokens == again.tokens == other.tokens
    assert (mine.cached_tokens, other.cached_tokens) == (0, 0)
    assert again.cached_tokens > 0


def test_a_reset_leaves_nothing_of_what_was_stored(server: Server, prompts: list[Prompt]) -> None:
    prompt = prompts[4]
    cold, warm = asked(server, prompt), asked(server, prompt)
    server.reset()
    after, anew = asked(server, prompt), asked(server, prompt)
    assert warm.cached_tokens == anew.cached_tokens > 0
    assert after.cached_tokens == 0
    assert cold.tokens == after.tokens == anew.tokens
    assert server.samples().total("kvtier:removed_chunks", tier="nvme", reason="invalidated") > 0


def test_what_is_stored_outlives_a_reset_where_the_operator_says_so(
    make_server: MakeServer, directory: Path, prompts: list[Prompt]
) -> None:
    with make_server(tiers=document(directory / "nvme-kept", on_reset="keep")) as server:
        cold = asked(server, prompts[0])
        server.reset()
        after = asked(server, prompts[0])
    assert cold.cached_tokens == 0
    assert after.cached_tokens > 0
    assert after.tokens == cold.tokens
