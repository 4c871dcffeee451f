"""An index with damage in it: nothing is raised into the server, and the next start heals it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import damage
import pytest
from faults import in_child
from nvme_rig import CHUNK_BYTES, IDENTITY, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.nvme.index.records import SCOPE, SEGMENT, Segment, SegmentState
from kvtier.tiers.nvme.index.transaction import Tables
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

CAPACITY_BYTES = 16 * MIB
KEYS = keys_of(0, 200)
LMDB_PAGE_BYTES, META_PAGES = 4096, 2
PAGES_SEEDS = 24


class Harm(NamedTuple):
    """One record as no kvtier writes it."""

    table: str
    key: bytes
    value: bytes


def segment_of(state: int, live_chunks: int = 1 << 31) -> bytes:
    whole = SEGMENT.pack(*Segment(SegmentState.SEALED, 1, 1, 2, live_chunks, 1 << 40, 1 << 20))
    return bytes([state]) + whole[1:]


def scope_one(key: bytes) -> bytes:
    return SCOPE.pack(1) + key


HARMS = {
    "number": Harm("meta", b"opened", b"x"),
    "cap": Harm("meta", b"capacity_bytes", b"x" * 9),
    "namespace": Harm("namespaces", IDENTITY.digest, b"x" * 7),
    "another namespace": Harm("namespaces", b"n" * 32, b""),
    "segment": Harm("segments", SCOPE.pack(1), b"x"),
    "segment of no state": Harm("segments", SCOPE.pack(1), segment_of(77)),
    "segment without a file": Harm("segments", SCOPE.pack(9999), segment_of(SegmentState.OPEN)),
    "age of no segment": Harm("ages", bytes([SegmentState.FREE]) + bytes(8) + SCOPE.pack(8888), b""),
    "age": Harm("ages", bytes([SegmentState.SEALED]), b""),
    "total": Harm("totals", bytes([SegmentState.SEALED]), b"x"),
    "extent": Harm("extents", scope_one(KEYS[50]), b"x"),
    "removal": Harm("removals", scope_one(KEYS[50]), b"x"),
    "unread": Harm("unread", b"x", b"x"),
}


async def served(path: Path) -> NvmeTier:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    for first in range(0, len(KEYS), 40):
        await stored(tier, KEYS[first : first + 40])
    await tier.flush()
    return tier


def do(tier: NvmeTier, harm: Harm) -> None:
    tables: Tables = tier._index._shared.tables
    tier._index.write(lambda txn: txn._txn.put(harm.key, harm.value, db=getattr(tables, harm.table)))


def left_by_the_killed(path: Path, harm: Callable[[NvmeTier], None]) -> None:
    async def serve() -> None:
        harm(await served(path))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(serve) == -signal.SIGKILL


async def use(tier: NvmeTier) -> None:
    """Whatever the index says, nothing is raised but what callers expect, and no byte is wrong."""
    tier.lookup(KEYS)
    await right(tier, KEYS)
    await tier.store(keys_of(1000, 40), filled(keys_of(1000, 40)))
    tier.stats()
    tier.used(KEYS)
    await tier._upkeep.once()


async def assert_healed(path: Path, *, may_lack: bool = False) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await tier._keeper.caught_up()
    assert await right(tier, KEYS) == KEYS or may_lack
    await stored(tier, keys_of(2000, 40))
    assert len(await right(tier, keys_of(2000, 40))) == 40
    assert not tier._index.damaged
    await tier.close()


@pytest.mark.parametrize("name", HARMS)
async def test_what_a_killed_process_left_damaged_costs_at_most_one_start_its_chunks(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "store"
    left_by_the_killed(path, lambda tier: do(tier, HARMS[name]))
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await use(tier)
    await tier.close()
    await assert_healed(path)


@pytest.mark.parametrize("name", HARMS)
async def test_damage_that_is_met_while_serving_is_healed_at_the_next_start(
    tmp_path: Path, name: str
) -> None:
    """Also where a checkpoint was made of it, whose checksum is right."""
    path = tmp_path / "store"
    tier = await served(path)
    do(tier, HARMS[name])
    await use(tier)
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await use(tier)
    await tier.close()
    await assert_healed(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pages_of_an_index_that_are_torn_or_stale_are_healed_by_a_restart_or_two(tmp_path: Path) -> None:
    """LMDB ends the process where it finds some kinds of damage: then it is the start after that.

    A page that stands in for another may look right, and hide what that one named: those chunks are misses.
    """
    for seed in range(PAGES_SEEDS):
        rng, path = random.Random(seed), tmp_path / f"store-{seed}"
        left_by_the_killed(path, lambda _: None)
        has_stale = _harm_pages(damage.home_of(path) / "data.mdb", rng)
        ends = [in_child(partial(_one_life, path)) for _ in range(2)]
        print(f"seed {seed}: {ends}, stale: {has_stale}")
        assert set(ends) <= {0, -signal.SIGABRT, -signal.SIGSEGV}, f"seed {seed}"
        asyncio.run(assert_healed(path, may_lack=has_stale))


def _harm_pages(data: Path, rng: random.Random) -> bool:
    """Harm one page or three; returns whether some page now stands in for another."""
    has_stale = False
    with data.open("r+b") as file:
        pages = range(META_PAGES, data.stat().st_size // LMDB_PAGE_BYTES)
        used = [page for page in pages if any(_read(file.fileno(), page))]
        for page in rng.sample(used, rng.choice([1, 1, 3])):
            other = _read(file.fileno(), rng.choice(used))
            harmed = rng.choice([bytes(LMDB_PAGE_BYTES), rng.randbytes(LMDB_PAGE_BYTES), other])
            has_stale |= harmed is other
            os.pwrite(file.fileno(), harmed, page * LMDB_PAGE_BYTES)
    return has_stale


def _read(fd: int, page: int) -> bytes:
    return os.pread(fd, LMDB_PAGE_BYTES, page * LMDB_PAGE_BYTES)


async def _one_life(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await use(tier)
    await tier.load(KEYS, aligned_buffers(len(KEYS), CHUNK_BYTES))
    tier.stats()
    await tier.close()
