"""The policies replayed on a public trace of chat requests, and on its beginning (see tests/data/README.md).

How hits are counted, and in which order an owner calls: a prompt block is a hit if it and all before it are
resident when its request arrives, and the ratio is over all prompt blocks. The request uses those, then
stores the others, all at once or in steps of some blocks, and gives up none of its own for them.
"""

from __future__ import annotations

import gzip
import json
import time
from itertools import takewhile
from pathlib import Path

import pytest
from eviction_rig import anything

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, EvictionPolicy

DATA = Path(__file__).parents[3] / "data"
TOLERANCE_PERCENT = 0.3  # in points: the order of one request's blocks moves a ratio by as much
STEP_TOLERANCE_PERCENT = 0.3
ROUNDING_PERCENT = 0.005  # our own figures, of this order, to two digits
STEP_CHUNKS = 4  # 2,048 tokens, of which a block has 512
NO_STEPS = 1 << 20

COST_US_MAX = 20  # a key: ten times what it is on a quiet machine

Requests = list[list[ChunkKey]]


def read(name: str) -> Requests:
    with gzip.open(DATA / name, "rt") as lines:
        return [[b"%d" % block for block in json.loads(line)["hash_ids"]] for line in lines]


@pytest.fixture(scope="module")
def beginning() -> Requests:
    return read("conversation_trace_1500.jsonl.gz")


@pytest.fixture(scope="module")
def whole() -> Requests:
    return read("conversation_trace.jsonl.gz")


def serve(policy: EvictionPolicy, capacity_chunks: int, prompt: int, keys: list[ChunkKey], step: int) -> int:
    """Use and keep one request's chunks, as an owner does; how many were there is returned."""
    hits = sum(1 for _ in takewhile(policy.__contains__, keys))
    policy.touch(prompt, keys[:hits], range(hits))
    for start in range(hits, len(keys), step):
        part = range(start, min(start + step, len(keys)))
        held = [at for at in part if keys[at] in policy]
        policy.touch(prompt, [keys[at] for at in held], held)
        new = [at for at in part if keys[at] not in policy]
        policy.evict(len(policy) + len(new) - capacity_chunks, anything, spare=prompt)
        policy.arrive(prompt)
        taken = new[: capacity_chunks - len(policy)]
        policy.insert(prompt, [keys[at] for at in taken], taken)
        if len(taken) < len(new):
            break
    return hits


def hit_percent(requests: Requests, policy_name: str, capacity_chunks: int, step: int = NO_STEPS) -> float:
    """The percentage of prompt blocks that hit."""
    policy = POLICIES[policy_name](capacity_chunks)
    found = sum(serve(policy, capacity_chunks, prompt, keys, step) for prompt, keys in enumerate(requests))
    policy.check()
    assert len(policy) <= capacity_chunks
    return 100 * found / sum(map(len, requests))


@pytest.mark.parametrize(
    ("policy_name", "capacity_chunks", "expected_percent"),
    [
        ("lru", 2_000, 4.58),
        ("lru", 10_000, 19.95),
        ("arc", 2_000, 5.52),
        ("arc", 10_000, 19.92),
        ("s3fifo", 2_000, 6.76),
        ("s3fifo", 10_000, 20.42),
        ("reuse", 2_000, 7.99),
        ("reuse", 10_000, 20.42),
        ("reuse", 1_000_000, 26.54),
    ],
)
def test_the_beginning_hits_as_often_as_before(
    beginning: Requests, policy_name: str, capacity_chunks: int, expected_percent: float
) -> None:
    percent = hit_percent(beginning, policy_name, capacity_chunks)
    assert percent == pytest.approx(expected_percent, abs=ROUNDING_PERCENT)
    in_steps = hit_percent(beginning, policy_name, capacity_chunks, STEP_CHUNKS)
    assert in_steps == pytest.approx(percent, abs=STEP_TOLERANCE_PERCENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy_name", "capacity_chunks", "expected_percent"),
    [
        ("lru", 10_000, 21.2),
        ("arc", 10_000, 22.5),
        ("s3fifo", 10_000, 20.2),
        ("reuse", 5_000, 16.9),
        ("reuse", 10_000, 22.6),
        ("reuse", 20_000, 29.9),
    ],
)
def test_the_whole_trace_hits_as_often_as_is_known_in_steps_too(
    whole: Requests, policy_name: str, capacity_chunks: int, expected_percent: float
) -> None:
    for step in (NO_STEPS, STEP_CHUNKS):
        percent = hit_percent(whole, policy_name, capacity_chunks, step)
        assert percent == pytest.approx(expected_percent, abs=TOLERANCE_PERCENT)


@pytest.mark.parametrize("policy_name", sorted(POLICIES))
def test_a_key_costs_microseconds(beginning: Requests, policy_name: str) -> None:
    requests = beginning[:500]
    started_s = time.thread_time()
    hit_percent(requests, policy_name, 5_000)
    spent_us = 1e6 * (time.thread_time() - started_s)
    assert spent_us / sum(map(len, requests)) < COST_US_MAX
