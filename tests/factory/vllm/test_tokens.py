"""The real vLLM generates the same tokens with kvtier as without, wherever the KV cache came from.

One request at a time and in float32: on a CPU, results depend on what else is in the batch, and in shorter
formats near-ties between tokens fall either way.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import Prompt
from vllm_phases import KilledOutcome, MakeServer, Outcome, Tokens, alone
from vllm_server import tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_a_server_that_stores_generates_the_same_tokens(outcome: Outcome, expected: Tokens) -> None:
    assert outcome.cold.tokens == expected
    assert outcome.cold.change("kvtier:store_bytes", tier="pinned") > 0
    assert outcome.cold.change("kvtier:store_bytes", tier="nvme") > 0


def test_hits_in_the_pinned_tier_generate_the_same_tokens(
    outcome: Outcome, expected: Tokens, reusable: list[int]
) -> None:
    assert outcome.pinned.tokens == expected
    assert outcome.pinned.cached_tokens == reusable
    assert outcome.pinned.change("kvtier:lookup_hits", tier="pinned") > 0
    assert outcome.pinned.change("kvtier:load_bytes", tier="pinned") > 0
    assert outcome.pinned.change("kvtier:load_bytes", tier="nvme") == 0


def test_half_of_a_loaded_prompt_generates_the_same_tokens(
    outcome: Outcome, expected: Tokens, reusable: list[int]
) -> None:
    assert outcome.pinned_pairs.tokens == expected
    assert outcome.pinned_pairs.cached_tokens == reusable


def test_hits_on_nvme_after_a_restart_generate_the_same_tokens(
    outcome: Outcome, expected: Tokens, reusable: list[int]
) -> None:
    assert outcome.nvme_pairs.tokens == expected
    assert outcome.nvme_pairs.cached_tokens == reusable
    assert outcome.nvme_pairs.change("kvtier:lookup_hits", tier="nvme") > 0
    assert outcome.nvme_pairs.change("kvtier:load_bytes", tier="nvme") > 0


def test_what_nvme_supplied_hits_in_the_pinned_tier_from_then_on(
    outcome: Outcome, expected: Tokens, reusable: list[int]
) -> None:
    assert outcome.nvme.tokens == expected
    assert outcome.nvme.cached_tokens == reusable
    assert outcome.nvme.change("kvtier:lookup_hits", tier="pinned") > 0
    assert outcome.nvme.change("kvtier:lookup_hits", tier="nvme") == 0


def test_a_model_served_otherwise_gets_nothing_of_it(
    outcome: Outcome, make_server: MakeServer, prompts: list[Prompt], directory: Path
) -> None:
    assert min(outcome.nvme.cached_tokens) > 0, "the directory holds these prompts"
    otherwise = {"hf_overrides": {"rms_norm_eps": 0.25}}
    with make_server(
        tiers=tier_document(pinned="256MiB", nvme=directory / "nvme"), engine=otherwise
    ) as server:
        cold, warm = alone(server, prompts[:2]), alone(server, prompts[:2])
    assert cold.tokens == warm.tokens
    assert cold.tokens != outcome.cold.tokens[:2], "the other setting makes a difference"
    assert cold.cached_tokens[0] == 0
    assert cold.change("kvtier:load_bytes", tier="nvme") == 0


def test_eviction_and_promotion_leave_the_tokens_as_they_are(
    killed_outcome: KilledOutcome, expected: Tokens
) -> None:
    assert killed_outcome.cold.tokens == expected
    assert killed_outcome.squeezed.tokens == expected
    assert min(killed_outcome.squeezed.cached_tokens) > 0
    assert killed_outcome.squeezed.change("kvtier:removed_chunks", tier="pinned", reason="evicted") > 0
    assert killed_outcome.squeezed.change("kvtier:lookup_hits", tier="nvme") > 0


def test_a_server_killed_amid_its_work_leaves_no_shared_memory(killed_outcome: KilledOutcome) -> None:
    assert killed_outcome.left_in_shared_memory == []


def test_a_server_begun_again_after_a_kill_serves_what_was_stored(
    killed_outcome: KilledOutcome, expected: Tokens
) -> None:
    assert killed_outcome.restarted.tokens == expected
    assert min(killed_outcome.restarted.cached_tokens) > 0
    assert killed_outcome.restarted.change("kvtier:lookup_hits", tier="nvme") > 0
    assert killed_outcome.restarted.change("kvtier:corrupt_chunks") == 0
