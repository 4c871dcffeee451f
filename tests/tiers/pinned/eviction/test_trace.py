"""The policies replayed on a public trace of chat requests, and on its beginning (see tests/data/README.md).

How hits are counted, and in which order an owner calls: a prompt block is a hit if it is resident
when its request arrives, wherever in the prompt it lies, and the ratio is over all prompt blocks.
Then the request makes room for its new blocks without giving up one that it hit, inserts the new
ones head first, and touches the hits. With tails evicted before heads, counting only the blocks
before the first miss gives the same ratio, and LRU gives 11.2%, 21.2% and 28.8%. Block by block, head
first, it would give 11.0%, 21.1% and 28.7%: heads then leave before their tails.
"""

from __future__ import annotations

import gzip
import json
from itertools import takewhile
from pathlib import Path

import pytest
from eviction_rig import insert, touch

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import POLICIES, EvictionPolicy

DATA = Path(__file__).parents[3] / "data"
TOLERANCE_PERCENT = 0.3  # in points: batching and the order of one request's blocks move a ratio by as much
ROUNDING_PERCENT = 0.005  # our own figures, of this order, to two digits

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


def serve(policy: EvictionPolicy, capacity_chunks: int, keys: list[ChunkKey]) -> set[ChunkKey]:
    """Use and keep one request's chunks, as an owner does; those that were there are returned."""
    hits = {key for key in keys if key in policy}
    new = [key for key in keys if key not in hits]
    policy.evict(len(policy) + len(new) - capacity_chunks, lambda key: key not in hits)
    insert(policy, new)
    touch(policy, [key for key in keys if key in hits])
    return hits


def hit_percents(requests: Requests, policy_name: str, capacity_chunks: int) -> tuple[float, float]:
    """The percentage of prompt blocks found, and of those found before their prompt's first miss."""
    policy = POLICIES[policy_name](capacity_chunks)
    found = found_before_a_miss = 0
    for keys in requests:
        hits = serve(policy, capacity_chunks, keys)
        found += len(hits)
        found_before_a_miss += sum(1 for _ in takewhile(hits.__contains__, keys))
    policy.check()
    assert len(policy) <= capacity_chunks
    total = sum(map(len, requests))
    return 100 * found / total, 100 * found_before_a_miss / total


@pytest.mark.parametrize(
    ("policy_name", "capacity_chunks", "expected_percent"),
    [
        ("lru", 2_000, 4.58),
        ("lru", 5_000, 10.97),
        ("lru", 10_000, 19.95),
        ("arc", 2_000, 5.52),
        ("arc", 5_000, 10.10),
        ("arc", 10_000, 19.92),
        ("s3fifo", 2_000, 6.76),
        ("s3fifo", 5_000, 11.39),
        ("s3fifo", 10_000, 20.42),
        ("lru", 1_000_000, 26.54),
        ("arc", 1_000_000, 26.54),
        ("s3fifo", 1_000_000, 26.54),
    ],
)
def test_the_beginning_hits_as_often_as_before(
    beginning: Requests, policy_name: str, capacity_chunks: int, expected_percent: float
) -> None:
    found_percent, usable_percent = hit_percents(beginning, policy_name, capacity_chunks)
    assert found_percent == pytest.approx(expected_percent, abs=ROUNDING_PERCENT)
    assert usable_percent == pytest.approx(found_percent, abs=0.05), "heads left before their tails"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy_name", "capacity_chunks", "expected_percent"),
    [
        ("lru", 5_000, 11.2),
        ("lru", 10_000, 21.2),
        ("lru", 20_000, 28.8),
        ("arc", 5_000, 11.7),
        ("arc", 10_000, 22.5),
        ("arc", 20_000, 28.9),
        ("s3fifo", 5_000, 14.5),
        ("s3fifo", 10_000, 20.2),
        ("s3fifo", 20_000, 25.1),
        ("lru", 1_000_000, 36.6),
        ("arc", 1_000_000, 36.6),
        ("s3fifo", 1_000_000, 36.6),
    ],
)
def test_the_whole_trace_hits_as_often_as_is_known(
    whole: Requests, policy_name: str, capacity_chunks: int, expected_percent: float
) -> None:
    found_percent, usable_percent = hit_percents(whole, policy_name, capacity_chunks)
    assert found_percent == pytest.approx(expected_percent, abs=TOLERANCE_PERCENT)
    assert usable_percent == pytest.approx(found_percent, abs=0.05), "heads left before their tails"
