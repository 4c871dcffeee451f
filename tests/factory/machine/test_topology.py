from __future__ import annotations

from host_tree import NVME, HostTree

from kvtier.factory.machine.topology import disks, gpus, nodes


def test_a_partition_is_on_its_disk(tree: HostTree) -> None:
    tree.nvme()
    (disk,) = disks(tree.host, 259, 1)
    assert (disk.name, disk.folder) == ("nvme0n1", tree.root / NVME)
    function = disk.pci()
    assert function is not None
    assert function.name == "0000:01:00.0"


def test_a_logical_volume_is_on_all_disks_below_it(tree: HostTree) -> None:
    tree.nvme()
    volume, array = "sys/devices/virtual/block/dm-0", "sys/devices/virtual/block/md0"
    tree.write("sys/devices/pci0000:00/ata1/sda/queue/rotational", "1")
    tree.link("sys/dev/block/253:0", volume)
    tree.write(f"{volume}/dm/name", "vg-data")
    tree.link(f"{volume}/slaves/md0", array)
    tree.link(f"{array}/slaves/nvme0n1p1", f"{NVME}/nvme0n1p1")
    tree.link(f"{array}/slaves/sda", "sys/devices/pci0000:00/ata1/sda")
    found = disks(tree.host, 253, 0)
    assert [disk.name for disk in found] == ["nvme0n1", "sda"]
    assert found[1].pci() is None


def test_a_loop_device_and_an_unknown_number_are_what_they_are(tree: HostTree) -> None:
    tree.write("sys/devices/virtual/block/loop3/queue/rotational", "0")
    tree.link("sys/dev/block/7:3", "sys/devices/virtual/block/loop3")
    assert [disk.name for disk in disks(tree.host, 7, 3)] == ["loop3"]
    assert disks(tree.host, 0, 45) == []


def test_gpus_are_known_by_their_class_and_their_nodes_where_there_are_some(tree: HostTree) -> None:
    assert gpus(tree.host) == []
    tree.gpu(node="1")
    tree.write("sys/bus/pci/devices/0000:00:1f.0/class", "0x060100")
    assert [one.name for one in gpus(tree.host)] == ["0000:41:00.0"]
    assert nodes(tree.host, gpus(tree.host)) == {1}
    tree.write("sys/bus/pci/devices/0000:41:00.0/numa_node", "-1")
    assert nodes(tree.host, gpus(tree.host)) == set()
