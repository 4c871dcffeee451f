import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.tiers.pinned import numa
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.numa import memory_nodes, prefer_node

NUMA_MAPS = Path("/proc/self/numa_maps")

NODE = 0  # the one that every machine has

NO_NODE = 1023

pytestmark = pytest.mark.skipif(not NUMA_MAPS.exists(), reason="a kernel without memory nodes")


@pytest.fixture
def address() -> Iterator[int]:
    mapping = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    yield int(np.frombuffer(mapping, np.uint8).ctypes.data)
    mapping.close()


def policy_of(address: int) -> str:
    lines = (line.split() for line in NUMA_MAPS.read_text().splitlines())
    return next(fields[1] for fields in lines if int(fields[0], 16) == address)


def test_a_range_prefers_the_node_that_it_is_told(address: int) -> None:
    prefer_node(address, 1 << 20, NODE)
    assert policy_of(address) == f"prefer:{NODE}"


@pytest.mark.parametrize("node", [-1, NO_NODE, 10**6])
def test_a_node_that_is_not_there_is_an_error(address: int, node: int) -> None:
    with pytest.raises(OSError, match=f"NUMA node {node}"):
        prefer_node(address, 1 << 20, node)


def test_a_machine_that_we_do_not_know_is_an_error(address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    with pytest.raises(OSError, match="cannot be chosen on abacus"):
        prefer_node(address, 1 << 20, NODE)


def test_an_arena_asks_for_its_slots() -> None:
    arena = Arena.private(4, 4096, numa_node=NODE)
    assert policy_of(int(arena.part_address(np.array([0]), 0)[0])) == f"prefer:{NODE}"
    arena.close()


def test_an_arena_works_without_the_node(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        arena = Arena.private(4, 4096, numa_node=NO_NODE)
    assert "comes from any NUMA node" in caplog.text
    arena.buffer(3)[0] = 1
    arena.close()


@pytest.mark.parametrize(
    ("text", "nodes"), [("0", [0]), ("0-2", [0, 1, 2]), ("0,8-9,64", [0, 8, 9, 64]), ("", [])]
)
def test_the_nodes_with_memory_are_read_from_the_kernels_list(
    text: str, nodes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numa, "NODES_WITH_MEMORY", tmp_path / "has_memory")
    numa.NODES_WITH_MEMORY.write_text(f"{text}\n")
    assert memory_nodes() == nodes


def test_a_kernel_without_the_list_has_no_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numa, "NODES_WITH_MEMORY", tmp_path / "has_memory")
    assert memory_nodes() == []
