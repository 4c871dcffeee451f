from __future__ import annotations

import pytest
from host_tree import HostTree

from kvtier.factory.machine.findings import Finding, State
from kvtier.factory.machine.memory import SharedMemory, Wanted, look_at_memory

GIB = 1 << 30
ROOMY = SharedMemory(64 * GIB, 60 * GIB)
WANTED = Wanted(arena_bytes=8 * GIB, index_bytes=2 * GIB)


def judged(
    tree: HostTree, shared: SharedMemory | None = ROOMY, wanted: Wanted = WANTED
) -> dict[str, Finding]:
    """Of each check the worst finding, which comes before an ok."""
    found = look_at_memory(tree.host, shared, wanted)
    return {one.check: one for one in sorted(found, key=lambda one: one.state is not State.OK)}


@pytest.mark.parametrize(
    ("shared", "wanted", "state", "text"),
    [
        (ROOMY, WANTED, State.OK, "60GiB of 64GiB free"),
        (SharedMemory(0, 0), WANTED, State.OK, "bounded by the memory alone"),
        (SharedMemory(8 * GIB, 8 * GIB), WANTED, State.FAULT, "take up to 10GiB"),
        (SharedMemory(12 * GIB, GIB), WANTED, State.WARNING, "1GiB of 12GiB are free"),
        (SharedMemory(8 * GIB, 8 * GIB, is_writable=False), Wanted(), State.FAULT, "cannot be written"),
        (SharedMemory(64 << 20, 64 << 20), Wanted(), State.WARNING, "without --shm-size"),
        (None, Wanted(), State.FAULT, "there is no /dev/shm"),
    ],
)
def test_shared_memory_is_measured_by_what_arena_and_indexes_take(
    tree: HostTree, shared: SharedMemory | None, wanted: Wanted, state: State, text: str
) -> None:
    finding = judged(tree, shared, wanted)["shared-memory"]
    assert (finding.state, text in finding.text) == (state, True)


@pytest.mark.parametrize(
    ("whole", "left", "state"), [(32, 16, State.OK), (32, 4, State.WARNING), (8, 8, State.FAULT)]
)
def test_memory_is_measured_likewise(tree: HostTree, whole: int, left: int, state: State) -> None:
    assert judged(tree)["memory"].state is State.UNKNOWN
    tree.write("proc/meminfo", f"MemTotal: {whole << 20} kB\nMemFree: 1 kB\nMemAvailable: {left << 20} kB")
    assert judged(tree)["memory"].state is state


def test_locked_memory_matters_where_there_is_a_gpu(tree: HostTree) -> None:
    tree.limits(**{"Max locked memory": str(8 << 20)})
    assert judged(tree)["memlock"].state is State.OK
    tree.gpu()
    assert judged(tree)["memlock"].state is State.WARNING
    tree.limits(**{"Max locked memory": "unlimited"})
    assert judged(tree)["memlock"].text == "unlimited"


def test_limits_of_nested_groups_count_each(tree: HostTree) -> None:
    assert judged(tree)["cgroup-memory"].text == "no limit"
    tree.write("proc/self/cgroup", "0::/pod/server")
    tree.write("sys/fs/cgroup/pod/server/memory.max", "max")
    tree.write("sys/fs/cgroup/pod/memory.max", str(4 * GIB))
    tree.write("sys/fs/cgroup/pod/memory.current", str(GIB))
    finding = judged(tree)["cgroup-memory"]
    assert (finding.state, "/sys/fs/cgroup/pod/memory.max allows 4GiB" in finding.text) == (State.FAULT, True)
    tree.write("sys/fs/cgroup/pod/memory.max", str(16 * GIB))
    assert judged(tree)["cgroup-memory"].text.endswith("allows 16GiB, 15GiB left")
    tree.write("sys/fs/cgroup/pod/server/memory.high", str(9 * GIB))
    finding = judged(tree)["cgroup-memory"]
    assert (finding.state, "memory.high slows" in finding.text) == (State.WARNING, True)


def test_what_the_first_version_writes_for_no_limit_is_none(tree: HostTree) -> None:
    tree.write("proc/self/cgroup", "4:memory:/docker/x")
    tree.write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", str((1 << 63) - 4096))
    assert judged(tree)["cgroup-memory"].text == "no limit"
    tree.write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", str(16 * GIB))
    assert judged(tree)["cgroup-memory"].state is State.UNKNOWN
