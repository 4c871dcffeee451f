"""The library says what is worth loading, where it is told how fast the server computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import CHUNK_BYTES, EngineRig, config

from kvtier.engine.movement.rates import KNOWN_FROM_BYTES
from kvtier.tiers.errors import ConfigError

TOKENS = 16
KEYS = [b"%d" % number for number in range(12)]  # of which a pinned tier of eight holds no more than that
TOLD = {"tokens_per_chunk": TOKENS, "prefill_tokens_per_s": float(TOKENS)}  # a chunk a second


class Rig(EngineRig):
    """An engine whose head of a prompt is in slots, and whose tail is below only."""

    def start(self, chunk_s: float | None, **told: Any) -> None:
        self.engine.register_kv_caches(self.device.tensors, **told)
        self.store(KEYS)
        self.engine.flush(10)
        where = self.engine.contains(KEYS)
        self.above = where.index("nvme")
        assert 0 < self.above < len(KEYS)
        assert set(where) == {"pinned", "nvme"}
        if chunk_s is not None:
            chunks = KNOWN_FROM_BYTES // CHUNK_BYTES
            rate = self.engine._lifetime.ready().chain._lower.rates["nvme"]
            rate.began(time.monotonic() - chunk_s * chunks)
            rate.ended(time.monotonic(), chunks * CHUNK_BYTES)

    def declined(self) -> int:
        return self.engine.stats().tiers["nvme"].counters["declined_chunks"]


@pytest.fixture
def document() -> dict[str, Any]:
    return {}


@pytest.fixture
def rig(tmp_path: Path, document: dict[str, Any]) -> Iterator[Rig]:
    rig = Rig({**config(tmp_path), **document}, register=False)
    yield rig
    rig.engine.close()


def test_a_lookup_stops_where_loading_is_slower_and_a_load_loads_what_it_is_told(rig: Rig) -> None:
    rig.start(2.0, **TOLD)
    assert rig.engine.lookup(KEYS) == rig.above
    assert rig.declined() == rig.engine.contains(KEYS).count("nvme")
    assert rig.engine.lookup(KEYS[: rig.above]) == rig.above
    assert rig.load(KEYS) == tuple(KEYS)


def test_a_lookup_goes_on_where_loading_is_faster(rig: Rig) -> None:
    rig.start(0.5, **TOLD)
    assert rig.engine.lookup(KEYS) == len(KEYS)
    assert rig.engine.lookup([*KEYS[:10], b"absent", *KEYS[10:]]) == 10
    assert rig.declined() == 0


@pytest.mark.parametrize(
    ("document", "chunk_s", "told"),
    [({}, None, TOLD), ({}, 2.0, {}), ({"recompute": "never"}, 2.0, TOLD)],
    ids=["no rate of loads", "no rate of computing", "never"],
)
def test_a_lookup_counts_all_where_nobody_can_or_wants_to_decide(
    rig: Rig, chunk_s: float | None, told: dict[str, Any]
) -> None:
    rig.start(chunk_s, **told)
    assert rig.engine.lookup(KEYS) == len(KEYS)


def test_the_given_rate_is_told_with_the_measured_one(rig: Rig) -> None:
    rig.start(2.0, **TOLD)
    gauges = {name: tier.gauges for name, tier in rig.engine.stats().tiers.items()}
    assert gauges["pinned"]["prefill_tokens_per_s"] == TOKENS
    assert gauges["nvme"]["load_bytes_per_s"] == pytest.approx(CHUNK_BYTES / 2, rel=0.01)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tokens_per_chunk": 16}, "^prefill_tokens_per_s: missing: .* go together"),
        ({"prefill_tokens_per_s": 5e3}, "^tokens_per_chunk: missing"),
        (
            {**TOLD, "tokens_per_chunk": 1.5},
            "^tokens_per_chunk: should be a whole number .*, not 1.5",
        ),
        ({**TOLD, "tokens_per_chunk": True}, "^tokens_per_chunk: should be a whole number"),
        ({**TOLD, "prefill_tokens_per_s": 0}, "^prefill_tokens_per_s: should be a number above zero, not 0"),
        ({**TOLD, "prefill_tokens_per_s": float("nan")}, "^prefill_tokens_per_s: .* not nan"),
        ({**TOLD, "prefill_tokens_per_s": "fast"}, "^prefill_tokens_per_s: .* not 'fast'"),
    ],
)
def test_both_are_told_as_numbers_or_neither(rig: Rig, told: dict[str, Any], message: str) -> None:
    for register in (rig.engine.register_kv_caches, rig.engine.registering):
        with pytest.raises(ConfigError, match=message):
            register(rig.device.tensors, **told)
    rig.engine.register_kv_caches(rig.device.tensors)
