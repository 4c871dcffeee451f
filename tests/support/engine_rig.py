"""An engine over CPU tensors and a directory, and the bytes its chunks should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kvtier.engine import OffloadEngine
from kvtier.tiers.testing import pattern

BLOCK_BYTES = 4096  # of one layer
LAYERS = 2
CHUNK_BYTES = BLOCK_BYTES * LAYERS
BLOCKS = 32


def config(
    path: Path, *, pinned_chunks: int = 8, capacity: int | str = "64MiB", **nvme: Any
) -> dict[str, Any]:
    """A document whose pinned tier holds `pinned_chunks` chunks."""
    return {
        "version": 1,
        "tiers": [
            {"type": "gpu"},
            {"type": "pinned", "capacity": pinned_chunks * CHUNK_BYTES},
            {"type": "nvme", "path": str(path), "capacity": capacity, "reserve": 0, **nvme},
        ],
    }


class Device:
    """A server's KV tensors, written and read by block."""

    def __init__(self) -> None:
        self.tensors = [torch.zeros((BLOCKS, BLOCK_BYTES), dtype=torch.uint8) for _ in range(LAYERS)]

    def fill(self, block: int, key: bytes) -> None:
        """Put the bytes that belong to `key` into a block."""
        data = torch.frombuffer(bytearray(pattern(key, CHUNK_BYTES)), dtype=torch.uint8)
        for layer, tensor in enumerate(self.tensors):
            tensor[block] = data[layer * BLOCK_BYTES : (layer + 1) * BLOCK_BYTES]

    def wipe(self) -> None:
        for tensor in self.tensors:
            tensor.zero_()

    def holds(self, block: int, key: bytes) -> bool:
        found = b"".join(bytes(tensor[block].numpy()) for tensor in self.tensors)
        return found == pattern(key, CHUNK_BYTES)


class EngineRig:
    """One life of an engine on a directory."""

    def __init__(
        self,
        document: Mapping[str, Any],
        namespace: Mapping[str, str] | None = None,
        *,
        register: bool = True,
    ) -> None:
        self.device = Device()
        self.engine = OffloadEngine.open(document, namespace or {"model": "tiny"})
        if not register:
            return
        try:
            self.engine.register_kv_caches(self.device.tensors)
        except BaseException:
            self.engine.close()
            raise

    def store(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Store chunks from blocks 0, 1, …; returns the keys that succeeded."""
        for block, key in enumerate(keys):
            self.device.fill(block, key)
        result = self.engine.store(keys, range(len(keys))).wait(10)
        assert set(result.succeeded) | set(result.failed) == set(keys)
        return result.succeeded

    def load(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Load chunks into blocks that were wiped, and compare every byte; returns the keys that came."""
        self.device.wipe()
        result = self.engine.load(keys, range(len(keys))).wait(10)
        assert set(result.succeeded) | set(result.failed) == set(keys)
        for block, key in enumerate(keys):
            assert self.device.holds(block, key) == (key in result.succeeded)
        return result.succeeded

    def idle(self) -> None:
        """Assert that nobody holds a slot any more."""
        self.engine.flush(10)
        stats = self.engine.stats()
        assert (stats.pinned_slots, sum(stats.pending_chunks.values())) == (0, 0)
        self.engine.check()
