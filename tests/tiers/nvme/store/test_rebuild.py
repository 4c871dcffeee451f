"""An index made again from segments that a drive refuses in part, or that a power loss left unfinished."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import damage
import pytest
from faulty_files import AnotherBoot, BadPlaces, UnsyncedFiles
from nvme_rig import MIB, filled, keys_of, names, opened, right, stored

from kvtier.tiers.base import ChunkKey, RemoveReason
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files, allocated_bytes
from kvtier.tiers.nvme.store.opening import Store, close_store, open_existing
from kvtier.tiers.nvme.tier import NvmeTier

CHUNKS = 200  # three segments and the beginning of a fourth


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, CHUNKS))
    await tier.close()
    damage.lose_index(path)
    return path


def first_segment(path: Path) -> Path:
    return min((path / "segments").iterdir())


async def test_a_trailer_that_cannot_be_read_costs_nothing(path: Path) -> None:
    segment = first_segment(path)
    files = BadPlaces(segment.name, segment.stat().st_size - BLOCK_BYTES)
    tier = await opened(path, files=files)
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


@pytest.mark.parametrize("which", ["first", "every"])
async def test_a_header_that_cannot_be_read_costs_nothing(path: Path, which: str) -> None:
    name = first_segment(path).name if which == "first" else ""
    tier = await opened(path, files=BadPlaces(name, 0))
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


@pytest.mark.parametrize("which", ["first", "every"])
async def test_segments_that_cannot_be_read_at_all_are_kept(path: Path, which: str) -> None:
    before, name = names(path / "segments"), first_segment(path).name if which == "first" else ""
    files = BadPlaces(name, *range(0, first_segment(path).stat().st_size, BLOCK_BYTES))
    if which == "first":
        tier = await opened(path, files=files)
        assert 0 < len(await right(tier, keys_of(0, CHUNKS))) < CHUNKS
        await tier.close()
        damage.lose_index(path)
    else:
        with pytest.raises(TierUnavailable, match="Input/output error"):
            await opened(path, files=files)
    assert names(path / "segments") == before
    tier = await opened(path)
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


class PassingErrors(Files):
    """The real files; the first time that a certain one is opened, the system has no descriptor left."""

    def __init__(self, name: str, code: int) -> None:
        self._name, self._code = name, code

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        if path.name == self._name and self._code:
            code, self._code = self._code, 0
            raise OSError(code, os.strerror(code))
        return super().open_data(path, create=create, write=write)


@pytest.mark.parametrize("code", [errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EINTR])
async def test_an_error_that_passes_costs_nothing(path: Path, code: int) -> None:
    tier = await opened(path, files=PassingErrors(first_segment(path).name, code))
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


async def test_a_directory_in_the_place_of_a_segment_stops_nothing(path: Path) -> None:
    (path / "segments" / "00000077.seg").mkdir()
    tier = await opened(path)
    assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    await tier.close()


async def test_a_table_that_cannot_be_read_costs_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    for first in range(0, 40, 4):
        await stored(tier, keys_of(first, 4))
    await tier.close()
    second_table = damage.using(path, lambda store: damage.extent_of(store, keys_of(4, 1)[0])).block - 1
    damage.lose_index(path)
    tier = await opened(path, files=BadPlaces(first_segment(path).name, second_table * BLOCK_BYTES))
    assert await right(tier, keys_of(0, 40)) == keys_of(0, 4) + keys_of(8, 32)
    await tier.close()


async def after_a_power_loss(path: Path, keys: Sequence[ChunkKey]) -> Path:
    """A store in which the keys were stored, batch by batch, and nothing was synced."""
    files = UnsyncedFiles()
    tier = await opened(path, files=files)
    async with tier._durability._rounds:  # nothing is synced
        for first in range(0, len(keys), 4):
            await stored(tier, keys[first : first + 4])
        assert files.lose_power(path, path.with_name("after"), random.Random(1)) > 0
    await tier.close()
    return path.with_name("after")


async def test_what_a_power_loss_left_unfinished_is_not_listed_and_can_be_stored_anew(tmp_path: Path) -> None:
    keys = keys_of(0, 40)
    left = await after_a_power_loss(tmp_path / "store", keys)
    tier = await opened(left, files=AnotherBoot())
    there = listed(tier, keys)
    assert 0 < len(there) < len(keys)
    assert await right(tier, there) == there
    await stored(tier, keys)
    assert await right(tier, keys) == keys
    await tier.close()


async def test_what_a_power_loss_left_unfinished_is_not_listed_once_its_segment_is_sealed(
    tmp_path: Path,
) -> None:
    keys = keys_of(0, 40)
    left = await after_a_power_loss(tmp_path / "store", keys)
    tier = await opened(left, files=AnotherBoot())
    there = listed(tier, keys)
    await stored(tier, keys_of(1000, 200))
    await tier.close()
    damage.lose_index(left)
    tier = await opened(left)
    assert listed(tier, keys) == there
    assert await right(tier, there + keys_of(1000, 200)) == there + keys_of(1000, 200)
    await tier.close()
    assert check_directory(Files(), left, deep=True, repair=False, progress=lambda *_: None).findings == ()


def listed(tier: NvmeTier, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
    return [key for key, found in zip(keys, tier.lookup(keys), strict=True) if found]


class Unopenable(Files):
    """The real files; a certain one cannot be opened.

    Attributes:
        name: its name; "" while all can.
        at_framed: which one it is once the segments were looked at; None for the same.
    """

    def __init__(self, name: str, code: int) -> None:
        self.name, self._code = name, code
        self.at_framed: str | None = None

    def reached(self, step: str) -> None:
        if step == "index framed" and self.at_framed is not None:
            self.name = self.at_framed

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        if path.name == self.name:
            raise OSError(self._code, os.strerror(self._code))
        return super().open_data(path, create=create, write=write)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
async def test_a_segment_that_cannot_be_opened_is_kept_and_counts_under_the_cap(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, capacity_bytes = tmp_path / "store", 8 * MIB
    tier = await opened(path, capacity_bytes=capacity_bytes)
    await stored(tier, keys_of(0, 200))
    await tier.close()
    damage.lose_index(path)
    segment = max((path / "segments").iterdir())
    for _ in range(2):  # at the second start the index is the checkpoint's
        tier = await opened(path, capacity_bytes=capacity_bytes, files=Unopenable(segment.name, code))
        for first in range(1000, 2000, 50):
            await tier.store(keys_of(first, 50), filled(keys_of(first, 50)))
            assert allocated_bytes(path) <= capacity_bytes
        assert f"{segment.name} cannot be opened" in caplog.text
        caplog.clear()
        await tier.close()
    assert segment.exists()


async def test_a_segment_that_could_not_be_opened_once_is_kept(path: Path) -> None:
    segment, kept = await newest_in(path)
    files = Unopenable(segment.name, errno.EIO)
    files.at_framed = ""
    tier = await opened(path, files=files)
    assert not any(tier.lookup(kept))
    await tier.close()
    assert segment.exists()
    damage.lose_index(path)
    tier = await opened(path)
    assert await right(tier, kept) == kept
    await tier.close()


async def newest_in(path: Path) -> tuple[Path, list[ChunkKey]]:
    """The newest segment with chunks, and theirs, as a store without an index finds them."""
    tier = await opened(path)
    with tier._index.read() as txn:
        places = [(extent.segment, key) for _, key, extent in txn.extents()]
        segment = tier._store.directory.segments.path(max(places)[0])
    await tier.close()
    damage.lose_index(path)
    return segment, sorted(key for number, key in places if number == int(segment.stem))


async def test_one_that_cannot_be_opened_any_more_keeps_no_other_from_being_read(path: Path) -> None:
    newest, lost = await newest_in(path)
    files = Unopenable("", errno.EIO)
    files.at_framed = newest.name
    tier = await opened(path, files=files)
    rest = [key for key in keys_of(0, CHUNKS) if key not in lost]
    assert await right(tier, rest) == rest
    await tier.close()
    damage.lose_index(path)
    tier = await opened(path)
    assert await right(tier, lost) == lost
    await tier.close()


async def test_a_torn_trailer_hides_no_removal(tmp_path: Path) -> None:
    """Its footer came to the drive, and the block with the removals did not."""
    path, keys = tmp_path / "store", keys_of(0, 8)
    tier = await opened(path)
    await stored(tier, keys)
    await tier.remove(keys[:4], RemoveReason.REQUESTED)
    tail = tier._appender._tail
    assert tail._current is not None
    name = tail._current.name
    tail._retire(tail._current)
    await tier.close()

    def tear(store: Store) -> None:
        with store.directory.segments.opened(name.segment, name.generation) as file:
            assert file is not None
            footer = file.read_footer()
        assert footer is not None
        assert footer.removals_bytes
        damage.overwrite(store, name.segment, footer.block * BLOCK_BYTES, bytes(BLOCK_BYTES))

    damage.using(path, tear)
    damage.lose_index(path)
    after = await opened(path)
    assert await right(after, keys) == keys[4:]
    await after.close()


async def test_what_was_ready_when_a_process_died_is_free_after_a_start_from_the_log(tmp_path: Path) -> None:
    path, keys = tmp_path / "store", keys_of(0, 8)
    tier = await opened(path)
    await stored(tier, keys)
    await tier._upkeep.once()
    await tier._ahead.finished()
    ready = {segment.name.segment for segment in tier._ahead._ready}
    damage.copy_of_whole_files(path, path.with_name("after"))
    await tier.close()
    store = open_existing(AnotherBoot(), path.with_name("after"))
    with store.index.read() as txn:
        states = {number: segment.state for number, segment in txn.segments().items()}
        assert txn.newest_unread() is None
    close_store(store)
    assert ready
    assert {states[number] for number in ready} == {SegmentState.FREE}
    after = await opened(path.with_name("after"), files=AnotherBoot())
    assert await right(after, keys) == keys
    await after.close()


async def test_a_segment_with_nothing_but_removals_is_not_given_back_as_free(tmp_path: Path) -> None:
    """It was left open by a process that died, and is ready again when this one closes."""
    path, keys = tmp_path / "store", keys_of(0, 8)
    first = await opened(path)
    await stored(first, keys)
    await first.flush()
    other = await opened(path)
    await other.remove(keys[:4], RemoveReason.REQUESTED)
    await other.close()  # which leaves its open segment, as a kill does
    third = await opened(path)
    await third._upkeep.once()
    await third._ahead.finished()
    await third.close()
    await first.close()
    damage.lose_index(path)
    after = await opened(path)
    await stored(after, keys_of(1000, 200))
    assert await right(after, keys) == keys[4:]
    await after.close()
    damage.lose_index(path)
    after = await opened(path)
    assert await right(after, keys) == keys[4:]
    await after.close()
