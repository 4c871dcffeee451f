"""Two ranks in the real vLLM: each keeps its part of every chunk, which other numbers of ranks never get."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from prompts import Prompt
from vllm_phases import MakeServer, Outcome, Phase, Tokens, alone, nobodys_shared_memory
from vllm_server import TWO_RANKS, tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOMY = "256MiB"  # all chunks of the prompts, twice


@dataclass(frozen=True, slots=True)
class RanksOutcome:
    """Two lives with two ranks, in a directory where one rank has stored; then one with one rank.

    Attributes:
        cold: what one rank has stored, asked of two.
        foreign: what only two ranks have stored, asked of one.
    """

    cold: Phase
    pinned: Phase
    left_after_exit: list[Path]
    nvme: Phase
    left_after_kill: list[Path]
    foreign: Phase


@pytest.fixture(scope="module")
def ranks(make_server: MakeServer, prompts: list[Prompt], directory: Path, outcome: Outcome) -> RanksOutcome:
    tiers = tier_document(pinned=ROOMY, nvme=directory / "nvme")  # where `outcome` has stored
    unheard = [prompt[::-1] for prompt in prompts[:2]]
    with make_server(tiers=tiers, **TWO_RANKS) as server:
        cold = alone(server, prompts)
        pinned = alone(server, prompts)
        alone(server, unheard)
    left_after_exit = nobodys_shared_memory()
    with make_server(tiers=tiers, **TWO_RANKS) as server:
        nvme = alone(server, prompts)
        server.kill()
        left_after_kill = nobodys_shared_memory()
    with make_server(tiers=tiers) as server:
        foreign = alone(server, unheard)
        server.kill()
    return RanksOutcome(cold, pinned, left_after_exit, nvme, left_after_kill, foreign)


def test_two_ranks_that_store_generate_the_same_tokens(ranks: RanksOutcome, expected: Tokens) -> None:
    assert ranks.cold.tokens == expected
    assert ranks.cold.change("kvtier:store_bytes", tier="nvme") > 0


def test_hits_in_the_pinned_tier_generate_the_same_tokens(
    ranks: RanksOutcome, expected: Tokens, reusable: list[int]
) -> None:
    assert ranks.pinned.tokens == expected
    assert ranks.pinned.cached_tokens == reusable
    assert ranks.pinned.change("kvtier:lookup_hits", tier="pinned") > 0
    assert ranks.pinned.change("kvtier:lookup_hits", tier="nvme") == 0


def test_hits_on_nvme_after_a_restart_generate_the_same_tokens(
    ranks: RanksOutcome, expected: Tokens, reusable: list[int]
) -> None:
    assert ranks.nvme.tokens == expected
    assert ranks.nvme.cached_tokens == reusable
    assert ranks.nvme.change("kvtier:lookup_hits", tier="nvme") > 0


def test_two_ranks_are_not_served_what_one_rank_has_stored(ranks: RanksOutcome) -> None:
    assert ranks.cold.cached_tokens[0] == 0
    assert ranks.cold.change("kvtier:lookup_hits", tier="nvme") == 0


def test_one_rank_is_not_served_what_two_ranks_have_stored(ranks: RanksOutcome) -> None:
    assert ranks.foreign.cached_tokens[0] == 0
    assert ranks.foreign.change("kvtier:lookup_hits", tier="nvme") == 0


def test_an_exit_of_all_ranks_leaves_no_shared_memory(ranks: RanksOutcome) -> None:
    assert ranks.left_after_exit == []


def test_a_kill_of_all_ranks_leaves_no_shared_memory(ranks: RanksOutcome) -> None:
    assert ranks.left_after_kill == []
