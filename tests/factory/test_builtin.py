"""What the entry of a pinned tier makes of memory, in the library and in the processes of a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier.factory.base import TierContext
from kvtier.factory.builtin import PinnedFactory
from kvtier.factory.composite import CompositeSpec
from kvtier.factory.entries import PinnedConfig
from kvtier.factory.vllm.server import Geometry, SchedulerSide, attach_arena
from kvtier.tiers import ConfigError
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.numa import memory_nodes
from kvtier.tiers.pinned.tier import PinnedTier

NUMA_MAPS = Path("/proc/self/numa_maps")

NODE = 0  # the one that every machine has

CHUNK_BYTES = 4096

needs_nodes = pytest.mark.skipif(
    not NUMA_MAPS.exists() or NODE not in memory_nodes(), reason="a kernel without memory nodes"
)


def policy_of(arena: Arena) -> str:
    """The memory policy of the range that the arena's slots are in."""
    address = int(arena.part_address(np.array([0]), 0)[0])
    ranges = [
        (int(fields[0], 16), fields[1]) for fields in map(str.split, NUMA_MAPS.read_text().splitlines())
    ]
    return max(entry for entry in ranges if entry[0] <= address)[1]


def composite(**pinned: Any) -> CompositeSpec:
    entry = {"type": "pinned", "capacity": 4 * CHUNK_BYTES, **pinned}
    return CompositeSpec.from_config({"version": 1, "tiers": [{"type": "gpu"}, entry]})


def geometry() -> Geometry:
    return Geometry(server=f"numa-{os.getpid()}", part_bytes=CHUNK_BYTES, ranks=1, parts=1, chunk_tokens=16.0)


@contextmanager
def server(spec: CompositeSpec) -> Iterator[tuple[Arena, Arena]]:
    """A scheduler's arena and its worker's, of one server."""
    worker = attach_arena(spec, geometry())
    try:
        scheduler = SchedulerSide(spec, geometry(), lambda arena: {}, group_tokens={b"": 16})
        try:
            yield spec.pinned.arena, worker
        finally:
            scheduler.close()
    finally:
        worker.close()


@needs_nodes
@pytest.mark.parametrize(("entry", "policy"), [({"numa_node": NODE}, f"prefer:{NODE}"), ({}, "default")])
async def test_the_librarys_arena_comes_from_the_node_of_the_document(
    entry: dict[str, Any], policy: str
) -> None:
    config = PinnedConfig(type="pinned", capacity=4 * CHUNK_BYTES, **entry)
    context = TierContext(part_bytes=CHUNK_BYTES, parts=1, identity={})
    tier = await PinnedFactory.open(config, context)
    assert isinstance(tier, PinnedTier)
    assert policy_of(tier.arena) == policy
    await tier.close()


@needs_nodes
@pytest.mark.parametrize(("entry", "policy"), [({"numa_node": NODE}, f"prefer:{NODE}"), ({}, "default")])
def test_a_servers_processes_take_theirs_from_it_too(entry: dict[str, Any], policy: str) -> None:
    with server(composite(**entry)) as arenas:
        assert [policy_of(arena) for arena in arenas] == [policy, policy]


def test_a_worker_refuses_a_node_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^tiers\[1\]\.numa_node: this machine has no NUMA node 1023; "):
        attach_arena(composite(numa_node=1023), geometry())
