"""How long a prefix takes to come back from a tier, by what is known of the tier's speed."""

from __future__ import annotations

from dataclasses import dataclass

GB = 1000**3

PINNED_BYTES_PER_S = 20 * GB  # of one GPU on 16 lanes of PCIe 4, which move 25 GB/s at best
DRIVE_BYTES_PER_S = 3 * GB  # of one drive on 4 lanes of PCIe 3 or 4


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a tier loads.

    Attributes:
        origin: where the figure comes from: "assumed", "given", or by which measurement and when.
    """

    bytes_per_s: float
    origin: str

    def seconds(self, size_bytes: float) -> float:
        """How long so many bytes take."""
        return size_bytes / self.bytes_per_s
