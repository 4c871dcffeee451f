"""The real `vllm serve` with kvtier: what its API answers, what `/metrics` shows, which events it tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompts import BLOCK_TOKENS, Prompt, crowd
from vllm_phases import nobodys_shared_memory
from vllm_serve import ApiServer, Completion
from vllm_server import Samples, has_vllm, tier_document

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

MIB = 1 << 20

PINNED = 26 * MIB  # two of the prompts
NVME = 72 * MIB  # some more of them, far from all
TOKENS = 1_500
PROMPTS = 6

FLIP_EVERY_BYTES = MIB // 4

CHUNK_BYTES = MIB
CHUNKS = 11  # of each prompt
REUSABLE = CHUNKS * BLOCK_TOKENS

CPU, STORAGE = "CPU", "STORAGE"

BREAKER = ("breaker_state", "breaker_openings", "breaker_missed", "breaker_refused", "breaker_dropped")


@dataclass(frozen=True, slots=True)
class Moment:
    """What the server answered, what `/metrics` showed after it, and which events came until then."""

    answers: list[Completion]
    samples: Samples
    events: list[Any]

    def blocks(self, kind: str, medium: str) -> list[Any]:
        """The hashes of the events of one kind and medium, one for each chunk."""
        chosen = [event for event in self.events if type(event).__name__ == kind and event.medium == medium]
        return [block for event in chosen for block in event.block_hashes]


@dataclass(frozen=True, slots=True)
class Served:
    """One life of a server.

    Attributes:
        cold: all prompts, one after the other; more than the tiers hold.
        pinned: the last prompt again.
        nvme: one again that left the pinned tier.
        corrupt: another one, after every chunk on disk was damaged.
        invalidated: the last prompt, after a reset of all tiers.
        store_in_use: whether the NVMe tier's directory says so, after the server has ended.
    """

    cold: Moment
    pinned: Moment
    nvme: Moment
    corrupt: Moment
    invalidated: Moment
    exit_code: int
    left_in_shared_memory: list[Path]
    store_in_use: bool


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    if not has_vllm():
        pytest.skip("needs vLLM; `make install` installs it")
    directory = tmp_path_factory.mktemp("serve")
    store = directory / "nvme"
    prompts = crowd(2 * PROMPTS, tokens=TOKENS)[::2]
    with ApiServer(
        model=directory / "model",
        tiers=tier_document(pinned=PINNED, nvme=store, nvme_capacity=NVME),
        log=directory / "vllm.log",
        environment={},
    ) as server:
        cold = _ask_cold(server, prompts)
        pinned = _ask(server, [prompts[-1]])
        nvme = _ask(server, [prompts[-3]])
        _damage(store)
        corrupt = _ask(server, [prompts[-4]])
        server.invalidate()
        invalidated = _ask(server, [prompts[-1]])
        exit_code = server.terminate()
        left = nobodys_shared_memory()
        marked = not json.loads((store / "in-use").read_text())["closed"]
    return Served(cold, pinned, nvme, corrupt, invalidated, exit_code, left, marked)


def _ask(server: ApiServer, prompts: Sequence[Prompt]) -> Moment:
    """Send each prompt to a device that remembers nothing, and let all stores reach the last tier."""
    answers = []
    for prompt in prompts:
        server.forget()
        answers.append(server.complete(prompt))
        samples = server.drain()
    return Moment(answers, samples, server.events())


def _ask_cold(server: ApiServer, prompts: Sequence[Prompt]) -> Moment:
    """Send each prompt, and nothing else until the idle server shows that all of it is stored."""
    answers = []
    for number, prompt in enumerate(prompts, start=1):
        server.forget()
        answers.append(server.complete(prompt))
        samples = server.settle(chunks=number * CHUNKS)
    return Moment(answers, samples, server.events())


def _damage(store: Path) -> None:
    """Flip bits in every chunk on disk, under the server's feet."""
    for path in (store / "segments").iterdir():
        with path.open("r+b") as file:
            for offset in range(FLIP_EVERY_BYTES, path.stat().st_size, FLIP_EVERY_BYTES):
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 0xFF]))


def _removed(moment: Moment, tier: str, *reasons: str) -> float:
    return sum(moment.samples.total("kvtier:removed_chunks", tier=tier, reason=reason) for reason in reasons)


def test_what_comes_from_any_tier_is_answered_with_the_same_tokens(served: Served) -> None:
    first = served.cold.answers
    assert served.pinned.answers[0].tokens == first[-1].tokens
    assert served.nvme.answers[0].tokens == first[-3].tokens
    assert served.corrupt.answers[0].tokens == first[-4].tokens
    assert served.invalidated.answers[0].tokens == first[-1].tokens
    assert len({answer.tokens for answer in first}) == PROMPTS


def test_an_idle_server_reports_its_last_numbers(served: Served) -> None:
    assert served.cold.samples.total("kvtier:pending_stores") == 0
    assert served.cold.samples.total("kvtier:pinned_slots") == 0


def test_the_api_tells_which_tokens_were_cached(served: Served) -> None:
    assert [answer.cached_tokens for answer in served.cold.answers] == [0] * PROMPTS
    assert served.pinned.answers[0].cached_tokens == REUSABLE
    assert served.nvme.answers[0].cached_tokens == REUSABLE
    assert served.corrupt.answers[0].cached_tokens == 0
    assert served.invalidated.answers[0].cached_tokens == 0


def test_metrics_show_hits_and_misses_by_tier(served: Served) -> None:
    assert served.cold.samples.total("kvtier:lookup_misses") == PROMPTS
    assert served.cold.samples.total("kvtier:lookup_hits") == 0
    assert served.pinned.samples.total("kvtier:lookup_hits", tier="pinned") == CHUNKS
    assert served.pinned.samples.total("kvtier:lookup_hits", tier="nvme") == 0
    from_nvme = served.nvme.samples.total("kvtier:lookup_hits", tier="nvme")
    assert 0 < from_nvme <= CHUNKS
    assert served.nvme.samples.total("kvtier:lookup_hits") == 2 * CHUNKS


def test_metrics_show_bytes_and_time_by_tier_and_direction(served: Served) -> None:
    cold, nvme = served.cold.samples, served.nvme.samples
    for tier in ("pinned", "nvme"):
        assert cold.total("kvtier:store_chunks", tier=tier) == PROMPTS * CHUNKS
        assert cold.total("kvtier:store_bytes", tier=tier) == PROMPTS * CHUNKS * CHUNK_BYTES
    hits = nvme.total("kvtier:lookup_hits", tier="nvme")
    assert nvme.total("kvtier:load_bytes", tier="nvme") == hits * CHUNK_BYTES
    assert nvme.total("kvtier:load_bytes", tier="pinned") == 2 * CHUNKS * CHUNK_BYTES
    assert cold.total("kvtier:load_bytes") == 0
    assert cold.total("kvtier:store_seconds", tier="nvme") > 0
    assert nvme.total("kvtier:load_seconds", tier="nvme") > 0
    assert cold.total("vllm:kv_offload_store_time") > 0
    assert nvme.total("vllm:kv_offload_load_time") > 0


def test_metrics_show_how_full_the_tiers_are_and_what_was_of_use(served: Served) -> None:
    cold, nvme = served.cold.samples, served.nvme.samples
    assert cold.total("kvtier:capacity_bytes", tier="pinned") == PINNED
    assert cold.total("kvtier:capacity_bytes", tier="nvme") == NVME
    assert 0 < cold.total("kvtier:used_bytes", tier="pinned") <= PINNED
    assert 0 < cold.total("kvtier:used_bytes", tier="nvme") <= NVME
    assert cold.total("kvtier:useful_bytes", tier="nvme") == 0
    # Hits in slots, in this life and in the one before it, are uses of the chunks on the drive, too.
    loaded, useful = (nvme.total(f"kvtier:{name}_bytes", tier="nvme") for name in ("load", "useful"))
    assert 0 < loaded <= useful <= nvme.total("kvtier:used_bytes", tier="nvme")
    assert cold.total("kvtier:pending_stores") == 0
    assert cold.total("kvtier:pinned_slots") == 0


def test_what_has_not_happened_is_shown_as_zero(served: Served) -> None:
    shown = served.cold.samples.of_kvtier()
    for name in ("corrupt_chunks", "late_loads", "dropped_chunks", "io_errors", *BREAKER):
        values = [value for key, value in shown.items() if key.startswith(f"kvtier:{name}") and "nvme" in key]
        assert values == [0], name


def test_chunks_that_leave_are_counted_by_tier_and_reason(served: Served) -> None:
    stored = PROMPTS * CHUNKS
    assert _removed(served.cold, "pinned", "evicted") == stored - PINNED // CHUNK_BYTES
    assert 0 < _removed(served.cold, "nvme", "evicted") < stored
    assert _removed(served.cold, "nvme", "corrupt", "invalidated") == 0
    assert _removed(served.corrupt, "nvme", "corrupt") > 0
    assert _removed(served.corrupt, "nvme", "corrupt") == served.corrupt.samples.total(
        "kvtier:corrupt_chunks"
    )
    assert _removed(served.corrupt, "pinned", "invalidated") == 0
    assert _removed(served.invalidated, "pinned", "invalidated") > 0
    assert _removed(served.invalidated, "nvme", "invalidated") > 0


def test_stores_are_told_as_events_with_their_medium(served: Served) -> None:
    stored = served.cold.blocks("BlockStored", CPU)
    assert len(stored) == len(set(stored)) == PROMPTS * CHUNKS
    assert sorted(served.cold.blocks("BlockStored", STORAGE)) == sorted(stored)
    assert not served.pinned.blocks("BlockStored", CPU)
    promoted = served.nvme.blocks("BlockStored", CPU)
    assert len(promoted) == served.nvme.samples.total("kvtier:lookup_hits", tier="nvme")
    assert set(promoted) <= set(stored)


def test_removals_are_told_as_events_and_agree_with_what_was_counted(served: Served) -> None:
    told = {CPU: 0, STORAGE: 0}
    there: dict[str, set[Any]] = {CPU: set(), STORAGE: set()}
    for moment in (served.cold, served.pinned, served.nvme, served.corrupt):
        for medium in (CPU, STORAGE):
            removed = moment.blocks("BlockRemoved", medium)
            there[medium] |= set(moment.blocks("BlockStored", medium))
            assert set(removed) <= there[medium], "only what was stored can leave"
            told[medium] += len(removed)
        assert told[CPU] == _removed(moment, "pinned", "evicted", "corrupt")
        assert told[STORAGE] == _removed(moment, "nvme", "evicted", "corrupt")
    assert len(served.invalidated.blocks("BlockRemoved", CPU)) == _removed(
        served.invalidated, "pinned", "invalidated"
    )


def test_sigterm_ends_the_server_in_the_orderly_way(served: Served) -> None:
    assert served.exit_code == 0
    assert served.left_in_shared_memory == []
    assert not served.store_in_use, "its last user has left the store"
