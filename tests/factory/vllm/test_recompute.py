"""The real vLLM computes what a slow drive has, once both rates are known, and generates the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import BLOCK_TOKENS, Prompt
from vllm_phases import MakeServer, Tokens, alone
from vllm_server import tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TIGHT = "26MiB"  # the longest prompt, and little else
BLOCK_BYTES = 1 << 20
TIMES_SLOWER = 4


def test_what_a_slow_drive_has_is_computed_and_the_tokens_are_the_same(
    make_server: MakeServer, prompts: list[Prompt], expected: Tokens, directory: Path
) -> None:
    tiers = tier_document(pinned=TIGHT, nvme=directory / "nvme-slow", recompute="auto")
    tiers["tiers"][2]["load_deadline_s"] = 120.0
    drive = directory / "drive_bytes_per_s"
    with make_server(
        tiers=tiers, spec=("saboteurs", "SlowDriveSpec"), extra={"drive_bytes_per_s": str(drive)}
    ) as server:
        cold = alone(server, prompts)
        tokens_per_s = cold.after.total("kvtier:prefill_tokens_per_second")
        assert tokens_per_s > 0
        drive.write_text(str(tokens_per_s / BLOCK_TOKENS * BLOCK_BYTES / TIMES_SLOWER))
        unknown = alone(server, prompts)
        known = alone(server, prompts)
    assert cold.tokens == unknown.tokens == known.tokens == expected
    assert unknown.change("kvtier:load_bytes", tier="nvme") > 0, "a drive is read while nobody knows its rate"
    assert unknown.after.total("kvtier:load_bytes_per_second", tier="nvme") > 0
    assert known.change("kvtier:declined_chunks", tier="nvme") > 0
    loaded = [phase.change("kvtier:load_bytes", tier="nvme") for phase in (unknown, known)]
    assert loaded[1] < loaded[0]
