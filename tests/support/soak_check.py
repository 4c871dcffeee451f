"""Checks a world of a soak that all have left: it is opened as by the next process, in good weather."""

from __future__ import annotations

from pathlib import Path

import soak_folder
import torch
from soak_user import Blocks, content
from soak_weather import Weather
from soak_world import BLOCK_BYTES, CHUNKS_EACH, LAYERS, USERS, World

from kvtier.engine import OffloadEngine
from kvtier.tiers.nvme.admin.finding import Kind
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.files import Files

LOAD_S = 60.0


def check_world(world: World, durable: dict[int, set[str]], gone: dict[int, set[str]]) -> list[str]:
    """Open a world that all have left, and hold it to what was promised; returns what is wrong."""
    wrong = []
    soak_folder.WEATHER[:] = [Weather(0, may_lose=False)]
    soak_folder.WEATHER[0].calm.set()
    for slot in durable:
        wrong += _check_slot(world, slot, durable[slot], gone[slot])
    report = check_directory(
        Files(), Path(world.path, "nvme"), deep=True, repair=False, progress=lambda *_: None
    )
    # What could not be synced is sealed without a trailer.
    return wrong + [f"fsck: {found.text}" for found in report.findings if found.kind is not Kind.TRAILER]


def _check_slot(world: World, slot: int, durable: set[str], gone: set[str]) -> list[str]:
    count = CHUNKS_EACH
    tensors = [
        torch.zeros((count * world.blocks_per_chunk, BLOCK_BYTES), dtype=torch.uint8) for _ in range(LAYERS)
    ]
    blocks = Blocks(tensors, 0, count, world.blocks_per_chunk)
    users = range(slot * USERS, (slot + 1) * USERS) if world.roomy else range(1)
    keys = [key for user in users for key in world.keys(user)]
    wrong: list[str] = []
    found: set[str] = set()
    with OffloadEngine.open(world.document(), world.namespace(slot)) as engine:
        engine.register_kv_caches(tensors, blocks_per_chunk=world.blocks_per_chunk)
        for start in range(0, len(keys), count):
            batch = keys[start : start + count]
            came = engine.load(batch, blocks.ids(len(batch))).wait(LOAD_S).succeeded
            found.update(key.decode() for key in came)
            for chunk, key in enumerate(batch):
                right = content(world.tag(slot), key, world.chunk_bytes)
                if key in came and blocks.read(chunk) != right:
                    wrong.append(f"wrong bytes for {key!r} after a restart")
    if lost := sorted(durable - found):
        wrong.append(f"flushed and lost: {len(lost)} of {len(durable)}, {lost[:4]}")
    if back := sorted(gone & found):
        wrong.append(f"removed and back: {len(back)}, {back[:4]}")
    return wrong
