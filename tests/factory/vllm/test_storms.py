"""Preemptions, aborts, resets and sleeps amid transfers: no slot stays in use, and no byte is a wrong one.

One life of a server whose device has room for three requests. Before each storm a few prompts are brought
into the pinned tier, so that their loads begin with the storm; they are held up until it has begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompts import Prompt, crowd
from vllm_phases import MakeServer, Phase, alone, foreign_loads, nobodys_shared_memory
from vllm_server import Samples, Server, tier_document

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPTS = 32
PROMPT_TOKENS = 700
OUTPUT_TOKENS = 96  # enough that every request needs one more block than it began with

ENGINE = {
    "max_model_len": 1024,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": PROMPTS,
    "num_gpu_blocks_override": 22,  # 7 a request, and one that vLLM keeps for itself
}

STORMS = ("preemption", "abort", "reset", "sleep")


@dataclass(frozen=True, slots=True)
class Storm:
    """What one storm left.

    Attributes:
        ended_count: requests that came to their end.
        calm: metrics when all stores had reached the last tier.
        events: what the manager was told meanwhile, with what that interrupted.
    """

    ended_count: int
    calm: Samples
    events: list[dict[str, int | str]]

    def most(self, event: str, interrupted: str) -> int:
        """The most transfers that one event has interrupted."""
        return max(int(each[interrupted]) for each in self.events if each["event"] == event)


@dataclass(frozen=True, slots=True)
class StormsOutcome:
    """One life.

    Attributes:
        before: a few prompts before all storms, with nothing cached.
        forgotten: the same after a sleep.
        after: the same once more.
        records: bytes of each chunk that left the device or came to it.
    """

    before: Phase
    by_kind: Mapping[str, Storm]
    forgotten: Phase
    after: Phase
    records: Path
    left_in_shared_memory: list[Path]


class Weather:
    """Makes storms in a server."""

    def __init__(self, server: Server, tally: Path, gate: Path) -> None:
        self._server = server
        self._tally = tally
        self._gate = gate

    def storm(self, prompts: list[Prompt], *, known: int = 0, **how: Any) -> Storm:
        """Send prompts; the first is new, and the next ones, as many as `known`, begin with a load."""
        self._server.generate(prompts[1 : 1 + known], forget=True)
        self._server.forget()
        if known:
            self._gate.touch()
        self._tally.write_text("")
        ended_count = self._server.storm(prompts, gate=self._gate if known else None, **how)
        calm = self._server.drain()
        return Storm(ended_count, calm, [json.loads(line) for line in self._tally.read_text().splitlines()])


@pytest.fixture(scope="module")
def storms(make_server: MakeServer, directory: Path) -> StormsOutcome:
    records, tally, gate = (directory / f"storms-{name}" for name in ("records", "tally", "gate"))
    known = crowd(PROMPTS, tokens=PROMPT_TOKENS)
    known = known[::2] + known[1::2]  # neighbours share nothing: the load of one would hold up the other
    new = [prompt[::-1] for prompt in known]
    with make_server(
        apart=True,  # the front end and the engine disturb each other as they do in production
        tiers=tier_document(pinned="48MiB", nvme=directory / "nvme-storms"),
        engine=ENGINE,
        spec=("saboteurs", "StormSpec"),
        extra={"records": str(records), "tally": str(tally), "gate": str(gate)},
    ) as server:
        weather = Weather(server, tally, gate)
        before = alone(server, known[:2])
        by_kind = {
            "preemption": weather.storm(known, output_tokens=OUTPUT_TOKENS),
            "abort": weather.storm(
                [new[0], *known[1:]],
                known=2,
                disturbance="abort",
                every_steps=3,
                opens_after=3,
                output_tokens=OUTPUT_TOKENS // 2,
            ),
            "reset": weather.storm(
                [new[1], *known[:11]],
                known=2,
                disturbance="reset",
                every_steps=3,
                output_tokens=OUTPUT_TOKENS // 4,
            ),
            "sleep": weather.storm(
                new[2:5], disturbance="sleep", every_steps=5, output_tokens=OUTPUT_TOKENS // 4
            ),
        }
        forgotten = alone(server, known[:2])
        after = alone(server, known[:2])
    return StormsOutcome(before, by_kind, forgotten, after, records, nobodys_shared_memory())


@pytest.mark.parametrize("storm", STORMS)
def test_after_a_storm_no_slot_is_in_use(storms: StormsOutcome, storm: str) -> None:
    calm = storms.by_kind[storm].calm
    assert calm.total("kvtier:pinned_slots") == 0
    assert calm.total("kvtier:pending_stores") == 0


def test_preempted_requests_come_to_their_end(storms: StormsOutcome) -> None:
    assert storms.by_kind["preemption"].ended_count == PROMPTS
    assert storms.by_kind["preemption"].calm.total("vllm:num_preemptions") > 0


def test_aborts_amid_loads_let_the_others_come_to_their_end(storms: StormsOutcome) -> None:
    assert 0 < storms.by_kind["abort"].ended_count < PROMPTS
    assert storms.by_kind["abort"].most("end", "loads") > 0


def test_resets_amid_transfers_let_all_requests_come_to_their_end(storms: StormsOutcome) -> None:
    assert storms.by_kind["reset"].ended_count == 12
    assert storms.by_kind["reset"].most("reset", "loads") > 0
    assert storms.by_kind["reset"].most("reset", "stores") > 0


def test_requests_that_slept_come_to_their_end(storms: StormsOutcome) -> None:
    slept = storms.by_kind["sleep"]
    assert slept.ended_count == 3
    assert (
        slept.most("reset", "stores") == slept.most("reset", "loads") == 0
    )  # vLLM falls asleep when all is done


def test_bytes_survive_storms(storms: StormsOutcome) -> None:
    assert foreign_loads(storms.records) == []


def test_after_all_storms_the_tokens_are_the_same(storms: StormsOutcome) -> None:
    assert storms.forgotten.cached_tokens[0] == 0  # a sleep forgets everything
    assert storms.forgotten.tokens == storms.before.tokens
    assert storms.after.tokens == storms.before.tokens
    assert min(storms.after.cached_tokens) > 0


def test_an_exit_after_storms_leaves_no_shared_memory(storms: StormsOutcome) -> None:
    assert storms.left_in_shared_memory == []
