"""Opening small NVMe tiers, and chunks whose bytes follow from their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtier.tiers.base import Buffer, ChunkKey
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers, pattern

KIB = 1024
MIB = 1024 * 1024
CHUNK_BYTES = 16 * KIB
IDENTITY = Identity({"model": "m", "dtype": "bfloat16"})


async def opened(path: Path, **changes: Any) -> NvmeTier:
    arguments: dict[str, Any] = {
        "capacity_bytes": 64 * MIB,
        "reserve_bytes": 0,
        "identity": IDENTITY,
        "chunk_bytes": CHUNK_BYTES,
    }
    return await NvmeTier.open(path, **(arguments | changes))


def made(path: Path, mode: int, contents: Mapping[str, str] | None = None) -> None:
    """A directory of exactly that mode, with small files in it."""
    path.mkdir()
    path.chmod(mode)
    for name, text in (contents or {}).items():
        (path / name).write_text(text)


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def keys_of(start: int, count: int) -> list[ChunkKey]:
    return [b"chunk-%010d" % number for number in range(start, start + count)]


def filled(keys: Sequence[ChunkKey], size_bytes: int = CHUNK_BYTES) -> list[Buffer]:
    buffers = aligned_buffers(len(keys), size_bytes)
    for key, buffer in zip(keys, buffers, strict=True):
        buffer[:] = pattern(key, size_bytes)
    return buffers


async def at_rest(tier: NvmeTier) -> None:
    """Return once the tier has made all the room it wants, and no file of its own changes meanwhile."""
    upkeep = tier._upkeep
    while True:
        await upkeep._keeping.once()
        await tier._ahead.finished()
        if not upkeep._keeper._changed:
            return


async def stored(tier: NvmeTier, keys: Sequence[ChunkKey], size_bytes: int = CHUNK_BYTES) -> None:
    """Store the chunks; every one must succeed."""
    outcome = await tier.store(keys, filled(keys, size_bytes))
    assert outcome.succeeded == tuple(keys), outcome.failed


async def right(tier: NvmeTier, keys: Sequence[ChunkKey], size_bytes: int = CHUNK_BYTES) -> list[ChunkKey]:
    """The keys that load; their bytes must be right."""
    buffers = aligned_buffers(len(keys), size_bytes)
    outcome = await tier.load(keys, buffers)
    for key, buffer in zip(keys, buffers, strict=True):
        if key not in outcome.failed:
            assert bytes(buffer) == pattern(key, size_bytes), f"wrong bytes for {key!r}"
    return list(outcome.succeeded)
