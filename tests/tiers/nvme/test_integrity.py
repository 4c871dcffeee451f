"""Whatever happens to the bytes on the drive, a load gives right bytes or a miss, never wrong ones."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import damage
import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, KIB, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import ChunkKey, Failure
from kvtier.tiers.nvme.index.records import Extent
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.testing import aligned_buffers

KEYS = keys_of(0, 200)  # some segments of a store of this size
CAPACITY_BYTES = 16 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def written(path: Path) -> dict[ChunkKey, Extent]:
    """A closed store of all `KEYS`, and where each lies."""
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        for start in range(0, len(KEYS), 20):
            await stored(tier, KEYS[start : start + 20])
        extents = tier._index.find(IDENTITY.digest, KEYS)[1]
    finally:
        await tier.close()
    return {key: extent for key, extent in zip(KEYS, extents, strict=True) if extent is not None}


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").iterdir())


def segment_of(path: Path, extent: Extent) -> Path:
    return path / "segments" / f"{extent.segment:08d}.seg"


@contextmanager
def patched(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def flip(path: Path, offset: int) -> None:
    with patched(path) as fd:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ (1 << offset % 8)]), offset)


def evidence(path: Path) -> list[Path]:
    return sorted((path / "quarantine").iterdir())


async def checked(path: Path, bad: set[ChunkKey]) -> None:
    """All but the `bad` ones load, with right bytes; those are misses for good, counted, with evidence."""
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        assert set(await right(tier, KEYS)) == set(KEYS) - bad
        assert tier.stats().counters["corrupt_chunks"] == len(bad)
        assert tier.stats().counters["misses"] == len(bad)
        assert tier.lookup(KEYS) == [key not in bad for key in KEYS]
        assert tier.stats().chunks == len(KEYS) - len(bad)
        assert bool(evidence(path)) == bool(bad)
        await stored(tier, sorted(bad))  # and can come back
        assert await right(tier, KEYS) == KEYS
    finally:
        await tier.close()


@pytest.mark.parametrize("place", ["first", "last", "random"])
async def test_a_flipped_byte_of_a_chunk_is_a_miss(path: Path, place: str) -> None:
    extents = await written(path)
    offsets = {"first": 0, "last": CHUNK_BYTES - 1, "random": random.Random(7).randrange(CHUNK_BYTES)}
    bad = set(KEYS[::9])
    for key in bad:
        flip(segment_of(path, extents[key]), extents[key].block * BLOCK_BYTES + offsets[place])
    await checked(path, bad)


@pytest.mark.slow
async def test_a_flipped_byte_anywhere_is_never_wrong_bytes(path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    await written(path)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        for _ in range(40):
            file = chance.choice(segments(path))
            flip(file, chance.randrange(file.stat().st_size))
            kept = await right(tier, KEYS)  # asserts that what loads is right
            assert len(kept) >= len(KEYS) - 1
            await tier.store(KEYS, filled(KEYS))
    finally:
        await tier.close()


async def test_a_truncated_segment_loses_what_was_cut_off_and_no_more(path: Path) -> None:
    extents = await written(path)
    first = extents[KEYS[0]].segment
    inside = [key for key in KEYS if extents[key].segment == first]
    cut = extents[inside[2]].block * BLOCK_BYTES + 100
    os.truncate(segment_of(path, extents[KEYS[0]]), cut)
    await checked(path, set(inside[2:]))


async def test_a_segment_truncated_to_nothing_is_a_miss(path: Path) -> None:
    extents = await written(path)
    os.truncate(segment_of(path, extents[KEYS[0]]), 0)
    await checked(path, {key for key in KEYS if extents[key].segment == extents[KEYS[0]].segment})


async def test_two_swapped_chunks_are_misses(path: Path) -> None:
    extents = await written(path)
    first, second = KEYS[3], KEYS[150]
    with (
        patched(segment_of(path, extents[first])) as one,
        patched(segment_of(path, extents[second])) as two,
    ):
        places = extents[first].block * BLOCK_BYTES, extents[second].block * BLOCK_BYTES
        old = os.pread(one, CHUNK_BYTES, places[0])
        os.pwrite(one, os.pread(two, CHUNK_BYTES, places[1]), places[0])
        os.pwrite(two, old, places[1])
    await checked(path, {first, second})


async def test_two_swapped_segments_are_misses(path: Path) -> None:
    extents = await written(path)
    first, second = segment_of(path, extents[KEYS[0]]), segment_of(path, extents[KEYS[100]])
    first.rename(first.with_suffix(".tmp"))
    second.rename(first)
    first.with_suffix(".tmp").rename(second)
    numbers = {extents[KEYS[0]].segment, extents[KEYS[100]].segment}
    await checked(path, {key for key in KEYS if extents[key].segment in numbers})


async def test_the_chunks_of_a_deleted_segment_are_misses(path: Path) -> None:
    extents = await written(path)
    segment_of(path, extents[KEYS[0]]).unlink()
    bad = {key for key in KEYS if extents[key].segment == extents[KEYS[0]].segment}
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        assert tier.lookup(KEYS) == [key not in bad for key in KEYS], "noticed before anybody loads one"
        assert set(await right(tier, KEYS)) == set(KEYS) - bad
        assert tier.stats().counters["corrupt_chunks"] == 0
        assert tier.stats().chunks == len(KEYS) - len(bad)
        await stored(tier, sorted(bad))
        assert await right(tier, KEYS) == KEYS
    finally:
        await tier.close()


@pytest.mark.slow
async def test_a_deleted_segment_is_found_while_the_store_is_open(path: Path) -> None:
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        await stored(tier, KEYS)
        for file in segments(path):
            file.unlink()
        assert await right(tier, KEYS) == []
        assert tier.stats().chunks == 0
        for start in range(0, 2000, 40):  # and the store goes on
            keys = keys_of(5000 + start, 40)
            await tier.store(keys, filled(keys))
            await right(tier, keys)
        assert allocated_bytes(path) <= CAPACITY_BYTES
        assert await right(tier, keys) == keys
    finally:
        await tier.close()


async def with_index_lost(path: Path) -> None:
    damage.lose_index(path)


async def with_checkpoint_cut(path: Path) -> None:
    os.truncate(path / "checkpoint", 3 * BLOCK_BYTES)


async def with_checkpoint_of_garbage(path: Path) -> None:
    (path / "checkpoint").write_bytes(os.urandom(64 * KIB))


async def with_checkpoint_of_another_store(path: Path) -> None:
    other = path.with_name("other")
    await written(other)
    shutil.copy(other / "checkpoint", path / "checkpoint")


async def with_checkpoint_emptied(path: Path) -> None:
    (path / "checkpoint").write_bytes(b"")


async def with_a_bit_of_the_checkpoint_flipped(path: Path) -> None:
    flip(path / "checkpoint", 5 * BLOCK_BYTES + 77)


async def with_a_directory_for_a_checkpoint(path: Path) -> None:
    (path / "checkpoint").unlink()
    (path / "checkpoint").mkdir()


@pytest.mark.parametrize(
    "damaged",
    [
        with_index_lost,
        with_checkpoint_cut,
        with_checkpoint_of_garbage,
        with_checkpoint_of_another_store,
        with_checkpoint_emptied,
        with_a_bit_of_the_checkpoint_flipped,
        with_a_directory_for_a_checkpoint,
    ],
)
async def test_a_lost_index_is_rebuilt_from_the_segments(
    path: Path, damaged: Callable[[Path], Awaitable[None]]
) -> None:
    await written(path)
    await damaged(path)
    await checked(path, set())


async def test_a_lost_index_and_a_lost_trailer_are_rebuilt_from_the_tables(path: Path) -> None:
    await written(path)
    await with_index_lost(path)
    for file in segments(path):
        flip(file, file.stat().st_size - BLOCK_BYTES + 9)
    await checked(path, set())


async def test_damage_behind_a_lost_index_is_still_a_miss(path: Path) -> None:
    extents = await written(path)
    flip(segment_of(path, extents[KEYS[5]]), extents[KEYS[5]].block * BLOCK_BYTES)
    await with_index_lost(path)
    await checked(path, {KEYS[5]})


async def test_another_stores_segment_in_place_of_ours_is_no_source_of_chunks(path: Path) -> None:
    extents = await written(path)
    other = path.with_name("other")
    theirs = await written(other)
    shutil.copy(segment_of(other, theirs[KEYS[0]]), segment_of(path, extents[KEYS[0]]))
    # The same keys at the same places with the same bytes, so the checksums agree: the chunks are right ones.
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        assert await right(tier, KEYS) == KEYS
    finally:
        await tier.close()
    # But a rebuild takes only what bears this store's name.
    await with_index_lost(path)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        inside = {key for key in KEYS if extents[key].segment == extents[KEYS[0]].segment}
        assert set(await right(tier, KEYS)) == set(KEYS) - inside
    finally:
        await tier.close()


@pytest.mark.slow
async def test_an_index_older_than_the_log_gives_right_bytes_or_misses(path: Path) -> None:
    await written(path)
    shutil.copy(path / "checkpoint", path.with_name("old"))
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    for start in range(1000, 3000, 20):  # the log turns over
        await tier.store(keys_of(start, 20), filled(keys_of(start, 20)))
    await tier.close()
    shutil.copy(path.with_name("old"), path / "checkpoint")
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        kept = await right(tier, KEYS)
        assert tier.lookup(KEYS) == [key in kept for key in KEYS]
        for start in range(5000, 7000, 20):
            await tier.store(keys_of(start, 20), filled(keys_of(start, 20)))
        assert allocated_bytes(path) <= CAPACITY_BYTES
        assert await right(tier, keys_of(6980, 20)) == keys_of(6980, 20)
    finally:
        await tier.close()


async def test_evidence_says_what_was_expected_and_shows_what_was_there(path: Path) -> None:
    extents = await written(path)
    key = KEYS[7]
    flip(segment_of(path, extents[key]), extents[key].block * BLOCK_BYTES)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        outcome = await tier.load([key], aligned_buffers(1, CHUNK_BYTES))
        assert outcome.failed == {key: Failure.CORRUPT}
    finally:
        await tier.close()
    (file,) = evidence(path)
    head, _, payload = file.read_bytes().partition(b"\n")
    facts = json.loads(head)
    assert facts["key"] == key.hex()
    assert facts["namespace"] == IDENTITY.digest.hex()
    assert (facts["segment"], facts["checksum"]) == (extents[key].segment, extents[key].checksum)
    wrong = bytearray(payload)
    wrong[0] ^= 1
    assert bytes(wrong) == bytes(filled([key])[0])
    assert file.stat().st_mode & 0o777 == 0o600


async def test_evidence_stays_within_its_share(path: Path) -> None:
    extents = await written(path)
    for key in KEYS:
        flip(segment_of(path, extents[key]), extents[key].block * BLOCK_BYTES + 5)
    await checked(path, set(KEYS))
    assert 0 < allocated_bytes(path / "quarantine") <= CAPACITY_BYTES // 32
