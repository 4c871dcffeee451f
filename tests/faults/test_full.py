"""File systems that are full, or that others fill"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faults import fault, in_child
from loop_rig import MAKE, MIB, Drive, drive, needs, run
from nvme_rig import filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import allocated_bytes

ROUNDS, FILL_AT, BATCH = 60, 20, 32
NEARLY_FULL_KIB = [0, 8, 12, 20, 28, 50, 100]


def says_full(message: str) -> bool:
    return "No space left" in message or "room" in message


async def serve_while_it_fills(made: Drive) -> None:
    """Whatever the file system says, this ends with right bytes or misses."""
    tier = await opened(made.point / "store", capacity_bytes=40 * MIB)
    filler: Path | None = None
    for number in range(ROUNDS):
        if number == FILL_AT:
            filler = made.fill()
        keys = keys_of(number * BATCH, BATCH)
        await tier.store(keys, filled(keys))
        await right(tier, keys)
    assert filler is not None
    filler.unlink()
    await tier._upkeep.once()
    await stored(tier, keys_of(90_000, BATCH))
    assert await right(tier, keys_of(90_000, BATCH)) == keys_of(90_000, BATCH)
    await tier.close()


@fault(
    "another program fills the file system",
    sees="stores that need a new segment fail, the others go on in the segments that are there",
    loses="the chunks of failed stores",
    heals="by itself, once there is room",
)
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["ext4", "ext3", "xfs", "btrfs", "tmpfs", "fuse"])
def test_another_program_fills_it(tmp_path: Path, kind: str) -> None:
    with _fuse(tmp_path) if kind == "fuse" else drive(kind, tmp_path, 128 * MIB) as made:
        assert in_child(lambda: serve_while_it_fills(made)) == 0


@contextmanager
def _fuse(place: Path) -> Iterator[Drive]:
    """A file system that a program serves, and that has a size: that of a tmpfs below it."""
    needs("bindfs")
    point = place / "served"
    point.mkdir()
    with drive("tmpfs", place, 128 * MIB) as below:
        run("bindfs", below.point, point)
        try:
            yield Drive("fuse", point)
        finally:
            run("umount", "--lazy", point)


@fault(
    "another program fills a btrfs, and gives the room back",
    sees="with a reserve, stores fail and what is there goes; without one, the store goes on in its segments",
    loses="the chunks of failed stores; with a reserve, what the reserve takes",
    heals="by itself, once there is room",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("reserve_bytes", [0, 40 * MIB])
def test_a_full_btrfs_has_room_again(tmp_path: Path, reserve_bytes: int) -> None:
    with drive("btrfs", tmp_path, 256 * MIB) as made:

        async def serve() -> None:
            tier = await opened(made.point / "store", capacity_bytes=32 * MIB, reserve_bytes=reserve_bytes)
            await stored(tier, keys_of(0, 640))
            filler = made.fill()
            why: set[Failure] = set()
            for first in range(1000, 2920, 64):
                outcome = await tier.store(keys_of(first, 64), filled(keys_of(first, 64)))
                why.update(outcome.failed.values())
                await right(tier, outcome.succeeded)
                await tier._upkeep.once()
            assert why <= {Failure.NO_SPACE}
            assert why or not reserve_bytes
            assert not tier._index.damaged
            filler.unlink()
            run("btrfs", "filesystem", "sync", made.point)
            await stored(tier, keys_of(5000, 640))
            assert await right(tier, keys_of(5000, 640)) == keys_of(5000, 640)
            await tier.close()

        assert in_child(serve) == 0


@fault(
    "a quota ends before the cap does (btrfs qgroup)",
    sees="as on a full file system",
    loses="the chunks of failed stores",
    heals="by itself, once the quota is raised",
)
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quota(tmp_path: Path) -> None:
    with drive("btrfs", tmp_path, 400 * MIB) as made:
        run("btrfs", "quota", "enable", made.point)
        run("btrfs", "subvolume", "create", made.point / "sub")
        run("btrfs", "qgroup", "limit", "24M", made.point / "sub")

        async def serve() -> None:
            tier = await opened(made.point / "sub" / "store", capacity_bytes=100 * MIB)
            for number in range(ROUNDS):
                keys = keys_of(number * 64, 64)
                await tier.store(keys, filled(keys))
                await right(tier, keys)
            await tier.close()

        assert in_child(serve) == 0


@fault(
    "free space falls below the reserve",
    sees="nothing",
    loses="the oldest chunks: the directory shrinks until the reserve is free",
    heals="by itself: it grows again once there is room",
)
@pytest.mark.root
def test_the_reserve_is_given_back(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 200 * MIB) as made:

        async def serve() -> None:
            tier = await opened(made.point / "store", capacity_bytes=64 * MIB, reserve_bytes=60 * MIB)
            for first in range(0, 3000, 100):
                await stored(tier, keys_of(first, 100))
            before_bytes = allocated_bytes(made.point / "store")
            filler = made.fill(leave_bytes=30 * MIB)
            for _ in range(20):
                await tier._upkeep.once()
            assert made.free_bytes() >= 58 * MIB
            assert allocated_bytes(made.point / "store") < before_bytes - 20 * MIB
            filler.unlink()
            keys = keys_of(9000, 100)
            await stored(tier, keys)
            assert await right(tier, keys) == keys
            await tier.close()

        asyncio.run(serve())


@fault(
    "a new store on a nearly full file system",
    sees="it works, or is refused with `TierUnavailable` that says that there is no room",
    loses="nothing",
    heals="with room",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_new_store_where_there_is_hardly_room(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 100 * MIB) as made:
        for free_kib in NEARLY_FULL_KIB:
            filler = made.fill(leave_bytes=free_kib * 1024)

            async def begin() -> None:
                try:
                    tier = await opened(made.point / "store")
                except TierUnavailable as error:
                    if not says_full(str(error)):
                        raise
                    return
                await tier.store(keys_of(0, 8), filled(keys_of(0, 8)))
                await tier.close()

            assert in_child(begin) == 0, f"with {free_kib} KiB free"
            filler.unlink()
            run("rm", "-rf", made.point / "store")


@fault(
    "a store that is there opens on a full file system",
    sees="it opens; what is there loads; stores go on in the segments that are there",
    loses="nothing",
    heals="-",
)
@pytest.mark.root
def test_an_old_store_opens_on_a_full_one(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 100 * MIB) as made:

        async def go() -> None:
            tier = await opened(made.point / "store", capacity_bytes=16 * MIB)
            await stored(tier, keys_of(0, 40))
            await tier.close()
            made.fill()
            tier = await opened(made.point / "store", capacity_bytes=16 * MIB)
            assert await right(tier, keys_of(0, 40)) == keys_of(0, 40)
            for first in range(1000, 1400, 20):
                await stored(tier, keys_of(first, 20))
            assert await right(tier, keys_of(1380, 20)) == keys_of(1380, 20)
            await tier.close()

        asyncio.run(go())


@fault(
    "no inodes are left",
    sees="stores go on in the segments that are there",
    loses="nothing",
    heals="-",
)
@pytest.mark.root
async def test_no_inodes(tmp_path: Path) -> None:
    with drive("tmpfs", tmp_path, 64 * MIB) as made:
        run("mount", "-o", "remount,nr_inodes=40", made.point)
        tier = await opened(made.point / "store", capacity_bytes=16 * MIB)
        await stored(tier, keys_of(0, 200))
        with suppress(OSError):
            for number in range(1000):
                (made.point / f"another-{number}").touch()
        for first in range(1000, 3000, 40):
            await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
        await tier._upkeep.once()
        await stored(tier, keys_of(5000, 40))
        assert await right(tier, keys_of(5000, 40)) == keys_of(5000, 40)
        await tier.close()


@fault(
    "a file system gives files more than their length (bigalloc, blocks of 64 KiB, extent size hints)",
    sees="nothing",
    loses="nothing: the cap counts what files take, so it holds fewer chunks",
    heals="-",
)
@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    [
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "bigalloc", "-C", "65536"],
        ["mkfs.xfs", "-q", "-f", "-b", "size=65536"],
        ["mkfs.xfs", "-q", "-f", "-d", "extszinherit=1024"],
    ],
    ids=["bigalloc", "blocks", "hints"],
)
async def test_files_that_take_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    kind = options[0].removeprefix("mkfs.")
    monkeypatch.setitem(MAKE, kind, options)
    with drive(kind, tmp_path, 400 * MIB) as made:
        tier = await opened(made.point / "store", capacity_bytes=16 * MIB)
        for first in range(0, 2000, 40):
            await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
            assert allocated_bytes(made.point / "store") <= 16 * MIB
        await tier.close()


@fault(
    "a reset of the server's cache (new weights) on a full file system",
    sees="nothing: an old segment makes room for what has to be written",
    loses="what the reset puts out of sight, and a segment",
    heals="-",
)
@pytest.mark.root
async def test_a_reset_on_a_full_one(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 100 * MIB) as made:
        tier = await opened(made.point / "store", capacity_bytes=16 * MIB)
        for first in range(0, 1600, 40):
            await stored(tier, keys_of(first, 40))
        made.fill()
        await tier.invalidate()
        assert not any(tier.lookup(keys_of(0, 400)))
        await stored(tier, keys_of(0, 40))
        assert await right(tier, keys_of(0, 40)) == keys_of(0, 40)
        await tier.close()
