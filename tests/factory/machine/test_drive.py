from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from host_tree import NVME, HostTree
from store_cli import fill

from kvtier.factory.machine.drive import DriveFacts, facts_of, look_at_drive, look_at_room
from kvtier.factory.machine.findings import Finding, State
from kvtier.factory.machine.host import Host
from kvtier.factory.room import Room
from kvtier.tiers.nvme.volume.filesystem import Abilities
from kvtier.tiers.nvme.volume.mounts import Mount

GOOD = DriveFacts(
    Path("/mnt/nvme0/kvtier"),
    Mount("ext4", "/dev/nvme0n1p1", Path("/mnt/nvme0")),
    Abilities(),
    "",
    259,
    1,
)


def judged(tree: HostTree, facts: DriveFacts = GOOD) -> dict[str, Finding]:
    found = look_at_drive(facts, tree.host)
    for one in found:
        assert bool(one.fix) == (one.state in (State.WARNING, State.FAULT)), one
    return {one.check: one for one in found}


ROOM = Room(
    sizes="tiers[2]",
    place="tiers[2].path",
    path=GOOD.path,
    mount="ext4 on /dev/nvme0n1p1 at /mnt/nvme0",
    capacity_bytes=2 << 40,
    reserve_bytes=100 << 30,
    whole_bytes=3 << 40,
    free_bytes=3 << 40,
    own_bytes=0,
    alone_bytes=2 << 40,
    cap_bytes=2 << 40,
    least_bytes=1 << 30,
    smaller_bytes=0,
    holds_segments=False,
    shared_with=(),
)


def test_the_room_of_a_drive_is_judged_by_what_it_can_really_take() -> None:
    assert look_at_room(ROOM) == Finding("room", State.OK, "2TiB of 2TiB")
    less = replace(ROOM, free_bytes=300 << 30, alone_bytes=200 << 30, cap_bytes=200 << 30)
    found = look_at_room(less)
    assert found.state is State.WARNING
    assert found.text == "200GiB of 2TiB, bound by free space: 300GiB are free, 100GiB have to stay so"
    none = look_at_room(replace(less, free_bytes=100 << 30, alone_bytes=0, cap_bytes=0))
    assert none.state is State.FAULT
    assert none.text.endswith("the tier can hold nothing")
    assert none.fix == 'Lower "reserve", or free 1GiB'


def test_a_good_drive_is_good_in_every_way(tree: HostTree) -> None:
    tree.nvme()
    tree.gpu()
    found = judged(tree)
    assert {one.state for one in found.values()} == {State.OK}
    assert found["pcie"].text == "nvme0n1: 16.0 GT/s PCIe, 4 lanes"


@pytest.mark.parametrize(
    ("changes", "check", "state", "text"),
    [
        ({"mount": Mount("nfs4", "host:/x", Path("/mnt"))}, "file-system", State.FAULT, "shared with other"),
        ({"mount": Mount("tmpfs", "tmpfs", Path("/mnt"))}, "file-system", State.WARNING, "in memory"),
        ({"mount": Mount("ext4", "/dev/x", Path("/mnt"), True)}, "mount", State.FAULT, "read-only"),
        ({"mount": Mount("ext4", "/dev/x", Path("/"))}, "mount", State.WARNING, "root file system"),
        ({"abilities": Abilities(direct=False)}, "direct-io", State.WARNING, "page cache"),
        ({"abilities": Abilities(fallocate=False)}, "fallocate", State.WARNING, "zeros"),
        ({"abilities": Abilities(locks=False)}, "locks", State.FAULT, "overwrite each other"),
        ({"abilities": None}, "direct-io", State.UNKNOWN, "could not be tried"),
        ({"refusal": "nvme: x belongs to user 7; chown it"}, "directory", State.FAULT, "belongs to user 7"),
    ],
)
def test_what_a_file_system_lacks_is_told(
    tree: HostTree, changes: dict[str, object], check: str, state: State, text: str
) -> None:
    tree.nvme()
    finding = judged(tree, replace(GOOD, **changes))[check]  # type: ignore[arg-type]  # of each field its own
    assert finding.state is state
    assert text in finding.text


def test_what_overwriting_costs_on_a_file_system_that_copies_is_told(tree: HostTree) -> None:
    btrfs = replace(
        GOOD, mount=GOOD.mount._replace(kind="btrfs"), abilities=Abilities()._replace(in_place=False)
    )
    assert judged(tree, btrfs)["overwriting"].state is State.WARNING


def test_a_slow_scheduler_a_narrow_link_and_a_far_node_are_told(tree: HostTree) -> None:
    tree.nvme(scheduler="none [bfq] kyber", width="2")
    found = judged(tree)
    assert found["scheduler"].fix == "echo none > /sys/block/nvme0n1/queue/scheduler"
    assert found["pcie"].text.endswith("2 lanes, of 16.0 GT/s PCIe, 4 lanes that it can do")
    tree.write("sys/devices/pci0000:00/0000:01:00.0/current_link_width", "4")
    tree.gpu(node="1")
    far = judged(tree)["pcie"]
    assert (far.state, "NUMA node 0; the GPUs are on 1" in far.text) == (State.WARNING, True)


def test_a_disk_that_rotates_is_told_and_a_virtual_one_is_not_trusted(tree: HostTree) -> None:
    tree.nvme()
    tree.write(f"{NVME}/queue/rotational", "1")
    assert judged(tree)["medium"].state is State.WARNING
    tree.write("sys/devices/pci0000:00/virtio1/block/vda/queue/rotational", "1")
    tree.link("sys/dev/block/254:0", "sys/devices/pci0000:00/virtio1/block/vda")
    assert judged(tree, replace(GOOD, major=254, minor=0))["medium"].state is State.OK


def test_a_machine_that_tells_nothing_is_unknown_and_never_wrong(tree: HostTree) -> None:
    found = judged(tree)
    assert found["disk"].state is State.UNKNOWN
    assert {one.state for one in found.values()} == {State.OK, State.UNKNOWN}


def test_limits_of_nested_groups_on_the_disk_are_told(tree: HostTree) -> None:
    tree.nvme()
    tree.write("proc/self/cgroup", "0::/pod/server")
    tree.write("sys/fs/cgroup/pod/server/io.max", "8:0 rbps=1 wbps=1\n259:0 rbps=1048576 wbps=max riops=500")
    tree.write("sys/fs/cgroup/pod/io.max", "259:0 rbps=max wbps=2097152 riops=max wiops=max")
    assert judged(tree)["cgroup-io"].text == (
        "this process is limited: reads to 1MiB a second by /sys/fs/cgroup/pod/server; "
        "reads to 500 calls a second by /sys/fs/cgroup/pod/server; "
        "writes to 2MiB a second by /sys/fs/cgroup/pod"
    )


def test_limits_of_the_first_version_are_told(tree: HostTree) -> None:
    tree.nvme()
    tree.write("proc/self/cgroup", "3:cpu:/\n7:blkio:/docker/x\n0::/")
    tree.write("sys/fs/cgroup/blkio/docker/x/blkio.throttle.read_bps_device", "259:0 1073741824")
    text = judged(tree)["cgroup-io"].text
    assert "reads to 1GiB a second" in text


def test_the_real_machine_has_no_fault_where_a_store_works(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    before = sorted(path.rglob("*"))
    found = look_at_drive(facts_of(path), Host())
    assert State.FAULT not in {one.state for one in found}
    assert {"file-system", "mount", "directory", "direct-io", "locks", "cgroup-io"} <= {
        one.check for one in found
    }
    assert sorted(path.rglob("*")) == before


def test_a_directory_that_a_start_refuses_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "photo.jpg").touch()
    found = {one.check: one for one in look_at_drive(facts_of(tmp_path), Host())}
    assert found["directory"].state is State.FAULT
    assert "holds other files" in found["directory"].text
