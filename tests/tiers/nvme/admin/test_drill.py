from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faulty_files import RefusingFiles
from nvme_rig import KIB, MIB

from kvtier.tiers import TierUnavailable
from kvtier.tiers.base import Buffer, Outcome
from kvtier.tiers.nvme.admin.drill import (
    ABANDONED_S,
    PREFIX,
    Drilled,
    capacity_for,
    drill,
    place_beside,
)
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.tier import NvmeTier

GIB = 1 << 30
CAPACITY_BYTES = 32 * MIB


def drilled(path: Path, **changes: Any) -> Drilled:
    arguments: dict[str, Any] = {
        "chunk_bytes": 64 * KIB,
        "capacity_bytes": CAPACITY_BYTES,
        "seconds": 0.2,
        "progress": lambda _: None,
    }
    return asyncio.run(drill(path, **(arguments | changes)))


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def test_what_was_stored_is_loaded_and_compared(tmp_path: Path) -> None:
    passed: list[float] = []
    found = drilled(tmp_path / "store", progress=passed.append)
    assert (found.wrong_chunks, found.failed) == (0, {})
    assert found.compared_chunks * 64 * KIB <= found.stored.size_bytes
    assert 0 < found.stored.size_bytes <= CAPACITY_BYTES
    for phase in (found.stored, found.loaded):
        assert phase.size_bytes % (len(phase.latencies_s) * 64 * KIB) == 0
        assert phase.bytes_per_s > 0
        assert 0 < phase.percentile_s(50) <= phase.percentile_s(99) <= phase.took_s
    assert passed == sorted(passed)
    assert max(passed) <= 0.2


@pytest.mark.parametrize("chunk_bytes", [4 * KIB, 4 * MIB])
def test_chunks_of_any_size_can_be_drilled(tmp_path: Path, chunk_bytes: int) -> None:
    found = drilled(tmp_path / "store", chunk_bytes=chunk_bytes, capacity_bytes=256 * MIB, seconds=0.1)
    assert (found.wrong_chunks, found.failed, found.compared_chunks > 0) == (0, {}, True)


class Flipping(Files):
    """Every read of chunks comes with one wrong bit."""

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        count = super().preadv(fd, buffers, offset)
        if sum(map(len, buffers)) >= 64 * KIB:
            buffers[-1][-1] ^= 1
        return count


def test_a_flipped_bit_on_the_drive_is_a_failure_that_is_told(tmp_path: Path) -> None:
    found = drilled(tmp_path / "store", files=Flipping())
    assert found.failed["corrupt"] > 0


def test_wrong_bytes_that_no_checksum_sees_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = NvmeTier.load

    async def wrong(self: NvmeTier, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await load(self, keys, buffers)
        buffers[0][:], buffers[1][:] = bytes(buffers[1]), bytes(buffers[0])
        return outcome

    monkeypatch.setattr(NvmeTier, "load", wrong)
    found = drilled(tmp_path / "store")
    assert 0 < found.wrong_chunks < found.compared_chunks


def test_a_drive_that_fills_up_midway_is_told_and_what_is_there_is_loaded(tmp_path: Path) -> None:
    files = RefusingFiles()

    def fill(passed_s: float) -> None:
        files.writes, files.free = errno.ENOSPC, 0

    found = drilled(tmp_path / "store", files=files, progress=fill, seconds=1.0)
    assert found.failed["no_space"] > 0
    assert set(found.failed) <= {"no_space", "not_durable", "missing"}  # some had to give room back
    assert (found.wrong_chunks, found.compared_chunks > 0) == (0, True)


def test_without_direct_io_it_is_said(tmp_path: Path) -> None:
    files = Files()
    files.direct = False
    assert not drilled(tmp_path / "store", files=files).is_direct


def test_room_is_taken_within_bounds() -> None:
    assert capacity_for(200 * GIB, 20 * GIB) == 4 * GIB
    assert capacity_for(40 * GIB, 4 * GIB) == 2 * GIB
    assert capacity_for(2 * GIB, GIB) == 256 * MIB
    with pytest.raises(TierUnavailable, match="above the reserve"):
        capacity_for(20 * GIB, 20 * GIB - 255 * MIB)


def test_its_place_is_on_the_same_file_system_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "store"
    with place_beside(path) as place:
        assert (place.parent, left(tmp_path)) == (tmp_path, [place])
    with pytest.raises(KeyboardInterrupt), place_beside(path):
        raise KeyboardInterrupt
    assert left(tmp_path) == []
    with place_beside(Path("/dev/shm")) as place:
        assert place.parent == Path("/dev/shm"), "beside it lies another file system"


def test_what_a_killed_drill_has_left_is_removed_and_what_one_uses_is_not(tmp_path: Path) -> None:
    old = time.time() - 2 * ABANDONED_S
    dead, new = tmp_path / f"{PREFIX}dead", tmp_path / f"{PREFIX}new"
    for folder in (dead, new):
        folder.mkdir()
        (folder / "file").touch()
    os.utime(dead, (old, old))
    with place_beside(tmp_path / "store") as used:
        os.utime(used, (old, old))
        with place_beside(tmp_path / "store") as other:
            assert left(tmp_path) == sorted([new, used, other])


def test_an_interrupt_ends_the_drill_and_its_tier(tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), place_beside(tmp_path / "store") as place:
        drilled(place / "store", progress=interrupt)
    assert left(tmp_path) == []
