"""A world of a soak: a directory that some processes share, and what they keep in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LAYERS, BLOCK_BYTES = 2, 4096
USERS = 3
CHUNKS_EACH = 16  # blocks of a user hold so many chunks
SLOTS = 24  # fewer than what all users move
OWN_KEYS = 100  # of each user
SHARED_KEYS = 1500  # far more than fit
LOAD_DEADLINE_S = 1.0


@dataclass(frozen=True)
class World:
    """A directory that some processes share.

    Attributes:
        number: sets it apart from all others of the soak.
        roomy: all that is stored fits; whoever uses it has a namespace and keys of its own, and what was
            flushed must be there. Else everything is shared, and more than fits.
    """

    number: int
    path: str
    roomy: bool
    capacity_bytes: int
    blocks_per_chunk: int

    def namespace(self, slot: int) -> dict[str, str]:
        return {"model": f"m{slot}" if self.roomy else "shared"}

    def tag(self, slot: int) -> str:
        return f"{self.number} {self.namespace(slot)['model']}"

    def keys(self, user: int) -> list[bytes]:
        if self.roomy:
            return [b"user-%d-%04d" % (user, number) for number in range(OWN_KEYS)]
        return [b"any-%05d" % number for number in range(SHARED_KEYS)]

    @property
    def chunk_bytes(self) -> int:
        return LAYERS * BLOCK_BYTES * self.blocks_per_chunk

    def document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "tiers": [
                {"type": "gpu"},
                {"type": "pinned", "capacity": SLOTS * self.chunk_bytes},
                {
                    "type": "nvme",
                    "path": f"{self.path}/nvme",
                    "capacity": self.capacity_bytes,
                    "reserve": 0 if self.roomy else "8MiB",
                    "load_deadline_s": LOAD_DEADLINE_S,
                },
                {
                    "type": "FolderFactory",
                    "module_path": "soak_folder",
                    "path": f"{self.path}/folder",
                    "evicts": not self.roomy,
                    "load_deadline_s": LOAD_DEADLINE_S,
                },
            ],
        }
