"""Caches in the real vLLM that are not one group of full attention.

A sliding window beside full attention, and recurrent layers beside it, make several groups of blocks; a
chunk belongs to one of them. Latent attention has one group, whose bytes are the same on all ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompts import Prompt
from vllm_phases import MakeServer, Phase, alone
from vllm_server import TWO_RANKS, tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TIGHT = "16MiB"  # 64 slots: twice the longest prompt, and not all prompts

ENGINES: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"disable_hybrid_kv_cache_manager": False},  # a connector turns it off, unless told otherwise
    # vLLM 0.32 on a CPU, with or without a connector, fails where a step crosses the end of a block: its
    # kernel for recurrent layers does not return the state there.
    "granite": {"max_num_batched_tokens": 128, "max_num_seqs": 4},
}


@dataclass(frozen=True, slots=True)
class GroupsOutcome:
    """One life with a tight pinned tier.

    Attributes:
        squeezed: what was evicted comes from NVMe.
        last: the last prompt once more, from the pinned tier.
        wiped: the same, whose chunks were zeros when they were loaded.
    """

    cold: Phase
    squeezed: Phase
    last: Phase
    wiped: Phase


@pytest.fixture(scope="module", params=ENGINES)
def groups(
    request: pytest.FixtureRequest, make_server: MakeServer, prompts: list[Prompt], directory: Path
) -> GroupsOutcome:
    shape = request.param
    forgets = directory / f"{shape}-forgets"
    with make_server(
        shape=shape,
        tiers=tier_document(pinned=TIGHT, nvme=directory / f"nvme-{shape}"),
        engine=ENGINES[shape],
        spec=("saboteurs", "ForgetfulSpec"),
        extra={"forgets": str(forgets)},
    ) as server:
        cold = alone(server, prompts)
        squeezed = alone(server, prompts)
        last = alone(server, prompts[-1:])
        forgets.touch()
        wiped = alone(server, prompts[-1:])
        server.kill()
    return GroupsOutcome(cold, squeezed, last, wiped)


@dataclass(frozen=True, slots=True)
class LatentOutcome:
    """One life of two ranks with latent attention.

    Attributes:
        records: of each rank, (direction, key, digest) of every chunk that left its device or came to it.
        log: what vLLM said.
    """

    cold: Phase
    hits: Phase
    records: list[list[tuple[str, str, str]]]
    log: str


@pytest.fixture(scope="module")
def latent(make_server: MakeServer, prompts: list[Prompt], directory: Path) -> LatentOutcome:
    records = directory / "latent.jsonl"
    with make_server(
        shape="deepseek",
        tiers=tier_document(pinned="128MiB", nvme=directory / "nvme-deepseek"),
        spec=("saboteurs", "RanksRecordingSpec"),
        extra={"records": str(records)},
        **TWO_RANKS,
    ) as server:
        cold = alone(server, prompts)
        hits = alone(server, prompts)
        server.kill()
    log = (directory / "vllm.log").read_text(errors="replace")
    return LatentOutcome(cold, hits, [_records(records, rank) for rank in (0, 1)], log)


def test_hits_in_several_groups_generate_the_same_tokens(groups: GroupsOutcome, reusable: list[int]) -> None:
    assert groups.cold.answers[0].cached_tokens == 0
    assert groups.squeezed.tokens == groups.cold.tokens
    assert groups.squeezed.cached_tokens == reusable
    assert groups.squeezed.change("kvtier:lookup_hits", tier="nvme") > 0
    assert groups.last.tokens == groups.cold.tokens[-1:]
    assert groups.last.cached_tokens == reusable[-1:]
    assert groups.last.change("kvtier:lookup_hits", tier="pinned") > 0


def test_wrong_bytes_in_several_groups_are_seen_in_the_tokens(
    groups: GroupsOutcome, reusable: list[int]
) -> None:
    assert groups.wiped.cached_tokens == reusable[-1:]
    assert groups.wiped.tokens != groups.cold.tokens[-1:]


def test_what_one_rank_stores_of_latent_attention_all_ranks_load(latent: LatentOutcome) -> None:
    assert latent.cold.change("kvtier:store_bytes", tier="pinned") > 0
    assert latent.hits.change("kvtier:lookup_hits", tier="pinned") > 0
    stores, loads = zip(*map(_by_direction, latent.records), strict=True)
    assert stores[1] == set()
    assert loads[0] == loads[1]
    assert loads[0] <= stores[0]


def test_tokens_of_latent_attention_are_not_compared_because_vllm_computes_no_part_of_a_prompt_here(
    latent: LatentOutcome,
) -> None:
    """On a CPU it ignores what lies before that part, whoever supplied it. Without the line, compare them."""
    assert "forcing chunked prefill and prefix caching to be disabled" in latent.log


def _records(records: Path, rank: int) -> list[tuple[str, str, str]]:
    lines = map(json.loads, Path(f"{records}.{rank}").read_text().splitlines())
    return [(line["direction"], line["key"], line["digest"]) for line in lines]


def _by_direction(records: list[tuple[str, str, str]]) -> tuple[set[str], set[str]]:
    """The chunks that a rank stored, and those that it loaded, by key and digest."""
    stores, loads = (
        {f"{key} {digest}" for direction, key, digest in records if direction == wanted}
        for wanted in ("store", "load")
    )
    return stores, loads
