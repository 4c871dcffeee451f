"""The disks below a directory, how they are attached, and which GPUs there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import Host

PCI = "/sys/bus/pci/devices"
DISPLAY_CLASSES = ("0x0300", "0x0302", "0x1200")  # VGA, 3D, processing accelerator


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk below a file system.

    Attributes:
        folder: of the disk, below /sys/devices.
    """

    name: str
    folder: Path

    def pci(self) -> Path | None:
        """The nearest function of the PCI bus above it, None where there is none that has a link."""
        return next((up for up in self.folder.parents if (up / "current_link_speed").exists()), None)


def disks(host: Host, major: int, minor: int) -> list[Disk]:
    """The disks that a device number stands for: behind partitions, logical volumes and arrays."""
    folder = host.real(f"/sys/dev/block/{major}:{minor}")
    return [] if folder is None else list(_below(folder))


def _below(folder: Path) -> Iterator[Disk]:
    if (folder / "partition").exists():
        folder = folder.parent
    members = sorted((folder / "slaves").iterdir()) if (folder / "slaves").is_dir() else []
    if not members:
        yield Disk(folder.name, folder)
    for member in members:
        yield from _below(member.resolve())


def gpus(host: Host) -> list[Path]:
    """The functions of the PCI bus that are GPUs."""
    found = [Path(PCI) / name for name in host.names(PCI)]
    return [one for one in found if (host.text(one / "class") or "").startswith(DISPLAY_CLASSES)]


def nodes(host: Host, functions: Sequence[Path]) -> set[int]:
    """The NUMA nodes of functions of the PCI bus, as far as the machine tells."""
    found = {host.number(one / "numa_node") for one in functions}
    return {node for node in found if node is not None and node >= 0}
