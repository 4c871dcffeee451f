"""kvtier's NVMe tier below vLLM's own CPU tier, in the real vLLM; one directory for both kinds of server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompts import Prompt
from vllm_phases import MakeServer, Phase, Tokens, alone
from vllm_server import tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class NativeOutcome:
    """Two lives of vLLM's own tiering over a directory, and one of kvtier's whole chain."""

    cold: Phase
    restarted: Phase
    chain: Phase


@pytest.fixture(scope="module")
def native(make_server: MakeServer, prompts: list[Prompt], tmp_path_factory: Any) -> NativeOutcome:
    path = tmp_path_factory.mktemp("native") / "nvme"
    settings = {
        "tiers": {},
        "spec": ("native_spec", "CpuTieringSpec"),
        "extra": {"cpu_bytes_to_use": 256 * MIB, "secondary_tiers": [_entry(path)]},
    }
    with make_server(**settings) as server:
        cold = alone(server, prompts)
    with make_server(**settings) as server:
        restarted = alone(server, prompts)
    with make_server(tiers=tier_document(pinned=256 * MIB, nvme=path)) as server:
        chain = alone(server, prompts)
    return NativeOutcome(cold, restarted, chain)


def _entry(path: Path) -> dict[str, Any]:
    return {
        "type": "KvtierNvmeTier",
        "module_path": "kvtier.factory.vllm",
        "path": str(path),
        "capacity": "1GiB",
        "reserve": "1GiB",
    }


def test_below_vllms_own_cpu_tier_the_tokens_are_the_same(native: NativeOutcome, expected: Tokens) -> None:
    assert native.cold.tokens == expected
    assert native.cold.change("kvtier:store_bytes", tier="nvme") > 0


def test_after_a_restart_vllms_own_tier_is_filled_from_nvme(
    native: NativeOutcome, expected: Tokens, reusable: list[int]
) -> None:
    assert native.restarted.tokens == expected
    assert native.restarted.cached_tokens == reusable
    assert native.restarted.change("kvtier:load_bytes", tier="nvme") > 0


def test_the_whole_chain_serves_what_the_tier_below_vllms_own_has_stored(
    native: NativeOutcome, expected: Tokens, reusable: list[int]
) -> None:
    assert native.chain.tokens == expected
    assert native.chain.cached_tokens == reusable
    assert native.chain.change("kvtier:lookup_hits", tier="nvme") > 0
    assert native.chain.change("kvtier:store_bytes", tier="nvme") == 0
