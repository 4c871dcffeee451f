"""What comes back to the device is, byte for byte, what left it: also where many requests run at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompts import crowd
from vllm_phases import KilledOutcome, MakeServer, foreign_loads
from vllm_server import Samples, tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

DEVICE_BLOCKS = 40  # vLLM wants room for one request of the longest kind, which is 32
CROWD = 16
CROWD_TOKENS = 700
CROWD_OUTPUT_TOKENS = 160  # enough that every request needs one more block than it began with


@pytest.fixture(scope="module")
def crowded(make_server: MakeServer, directory: Path) -> tuple[Samples, Path]:
    """Many requests at once, twice, on a device so small that some are preempted."""
    records = directory / "crowded.jsonl"
    with make_server(
        tiers=tier_document(pinned="48MiB", nvme=directory / "nvme-crowded"),
        engine={"num_gpu_blocks_override": DEVICE_BLOCKS},
        spec=("saboteurs", "RecordingSpec"),
        extra={"records": str(records)},
    ) as server:
        for _ in range(2):
            server.generate_together(crowd(CROWD, tokens=CROWD_TOKENS), output_tokens=CROWD_OUTPUT_TOKENS)
            samples = server.drain()
        server.kill()
    return samples, records


def test_bytes_survive_eviction_promotion_a_kill_and_a_restart(killed_outcome: KilledOutcome) -> None:
    assert foreign_loads(killed_outcome.records) == []


def test_bytes_survive_preemption(crowded: tuple[Samples, Path]) -> None:
    samples, records = crowded
    assert samples.total("vllm:num_preemptions") > 0
    assert samples.total("kvtier:lookup_hits", tier="pinned") > 0
    assert samples.total("kvtier:lookup_hits", tier="nvme") > 0
    assert foreign_loads(records) == []
