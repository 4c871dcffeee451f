"""A machine of files: what the kernel would tell of it under /proc and /sys."""

from __future__ import annotations

from pathlib import Path

from kvtier.factory.machine.host import Host

NVME = "sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1"
BUS = "sys/bus/pci/devices"


class HostTree:
    """Files below a root; `host` reads them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(root)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        """A link, by paths from the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(self.root / target)

    def nvme(self, *, scheduler: str = "[none] mq-deadline", width: str = "4", node: str = "0") -> None:
        """An NVMe drive with one partition, 259:1, on a link that can do four lanes."""
        function = "sys/devices/pci0000:00/0000:01:00.0"
        for name, text in (
            ("current_link_speed", "16.0 GT/s PCIe"),
            ("max_link_speed", "16.0 GT/s PCIe"),
            ("current_link_width", width),
            ("max_link_width", "4"),
            ("numa_node", node),
        ):
            self.write(f"{function}/{name}", text)
        self.write(f"{NVME}/queue/scheduler", scheduler)
        self.write(f"{NVME}/queue/rotational", "0")
        self.write(f"{NVME}/dev", "259:0")
        self.write(f"{NVME}/nvme0n1p1/partition", "1")
        self.link("sys/dev/block/259:1", f"{NVME}/nvme0n1p1")

    def gpu(self, *, node: str = "0") -> None:
        self.write(f"{BUS}/0000:41:00.0/class", "0x030200")
        self.write(f"{BUS}/0000:41:00.0/numa_node", node)

    def limits(self, **limits: str) -> None:
        """Limits of this process: `limits(**{"Max open files": "1024"})`."""
        lines = [f"{name:<26}{soft:<21}{soft:<21}units" for name, soft in limits.items()]
        self.write("proc/self/limits", "\n".join(["Limit                     Soft Limit", *lines]))
