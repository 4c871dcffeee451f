"""Checking a store: each kind of damage is found, a whole store is clean, whoever writes to it."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import damage
import pytest
from faulty_files import BadPlaces
from nvme_rig import MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer, RemoveReason
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.finding import Kind, Report
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.store.opening import Store

SUPPORT = Path(__file__).parents[3] / "support"
CHUNKS = 200  # three segments and the beginning of a fourth
KEY = keys_of(7, 1)[0]


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, CHUNKS))
    await right(tier, keys_of(0, 10))
    await tier.close()
    return path


def checked(path: Path, *, deep: bool = True, repair: bool = False) -> Report:
    return check_directory(Files(), path, deep=deep, repair=repair, progress=lambda done, total: None)


def kinds(report: Report) -> set[Kind]:
    return {finding.kind for finding in report.findings}


async def test_a_whole_store_is_clean_and_every_chunk_is_counted_as_read(path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = check_directory(
        Files(), path, deep=True, repair=False, progress=lambda done, total: told.append((done, total))
    )
    assert report == Report((), CHUNKS, len(list((path / "segments").glob("*.seg"))))
    assert told == [(done, CHUNKS) for done in range(1, CHUNKS + 1)]


@pytest.mark.parametrize(
    ("done", "kind", "left"),
    [
        (damage.orphan, Kind.ORPHAN, CHUNKS),
        (damage.header, Kind.HEADER, CHUNKS),
        (damage.trailer, Kind.TRAILER, CHUNKS),
        (damage.misplaced, Kind.PLACE, CHUNKS),
        (damage.moved(KEY), Kind.TABLE, CHUNKS - 1),
        (damage.flipped(KEY), Kind.CONTENT, CHUNKS - 1),
        (damage.segment_sums, Kind.SUMS, CHUNKS),
        (damage.namespace_sums, Kind.SUMS, CHUNKS),
    ],
    ids=["orphan", "header", "trailer", "place", "table", "content", "segment sums", "namespace sums"],
)
async def test_each_kind_of_damage_is_found_and_mended_at_the_least_cost(
    path: Path, done: damage.Damage, kind: Kind, left: int
) -> None:
    damage.using(path, done)
    found = checked(path)
    assert kind in kinds(found)
    assert checked(path).findings == found.findings, "a check without repair changes nothing"
    mended = checked(path, repair=True)
    assert mended.repaired == len(mended.findings) > 0
    assert checked(path).findings == ()
    tier = await opened(path)
    assert len(await right(tier, keys_of(0, CHUNKS))) == left
    assert tier.stats().chunks == left
    await tier.close()


@pytest.mark.parametrize("done", [damage.lost_file, damage.foreign_header], ids=["lost file", "foreign"])
async def test_a_segment_that_is_beyond_help_is_given_up_and_the_others_stay(
    path: Path, done: damage.Damage
) -> None:
    damage.using(path, done)
    assert kinds(checked(path)) & {Kind.LOST_FILE, Kind.HEADER}
    assert checked(path, repair=True).findings
    assert checked(path).findings == ()
    tier = await opened(path)
    there = await right(tier, keys_of(0, CHUNKS))
    assert CHUNKS // 2 < len(there) < CHUNKS
    assert tier.stats().chunks == len(there), "what is not there is not promised"
    await stored(tier, keys_of(0, CHUNKS))
    await tier.close()
    assert checked(path).findings == ()


@pytest.mark.parametrize(
    "done",
    [damage.moved(KEY), damage.trailer, damage.header, damage.namespace_sums],
    ids=["table", "trailer", "header", "sums"],
)
async def test_what_tables_and_records_show_is_found_without_reading_chunks(
    path: Path, done: damage.Damage
) -> None:
    damage.using(path, done)
    assert checked(path, deep=False).findings


async def test_a_bad_chunk_leaves_the_same_key_of_another_namespace_alone(path: Path) -> None:
    other = Identity({"model": "other"})
    tier = await opened(path, identity=other)
    await stored(tier, [KEY])
    await tier.close()
    damage.using(path, damage.flipped(KEY))
    assert checked(path, repair=True).repaired == 1
    both = [await opened(path), await opened(path, identity=other)]
    there = [len(await right(tier, [KEY])) for tier in both]
    assert sorted(there) == [0, 1]
    for tier in both:
        await tier.close()


async def test_a_lost_index_is_a_finding_and_is_rebuilt_only_on_request(path: Path) -> None:
    damage.lose_index(path)
    for _ in range(2):
        assert kinds(checked(path)) == {Kind.INDEX}
    report = checked(path, repair=True)
    assert (kinds(report), report.repaired, report.chunks) == ({Kind.INDEX}, 1, CHUNKS)
    assert checked(path).findings == ()


async def test_a_torn_checkpoint_is_a_finding(path: Path) -> None:
    os.truncate(path / "checkpoint", 4 * BLOCK_BYTES)
    assert kinds(checked(path)) == {Kind.INDEX}
    assert checked(path, repair=True).chunks == CHUNKS
    assert checked(path).findings == ()


async def test_an_index_that_servers_use_is_not_rebuilt_under_them(path: Path) -> None:
    tier = await opened(path)
    tier._index.write(lambda txn: txn.set_store_uuid(b"another"))
    with pytest.raises(TierUnavailable, match="stop those who use it"):
        checked(path, repair=True)
    await tier.close()


async def test_a_trailer_that_was_written_again_still_names_what_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 20))
    await tier.remove(keys_of(0, 5), RemoveReason.REQUESTED)  # behind the end that the index knows
    tail = tier._appender._tail
    assert tail._current is not None
    tail._retire(tail._current)  # sealed with the removals as its last batch
    await stored(tier, keys_of(20, 1))
    await tier.close()
    damage.using(path, damage.trailer)
    assert kinds(checked(path, repair=True)) == {Kind.TRAILER}
    damage.lose_index(path)
    tier = await opened(path)
    assert await right(tier, keys_of(0, 21)) == keys_of(5, 16)
    await tier.close()


async def test_a_device_that_refuses_to_read_a_chunk_is_a_finding(path: Path) -> None:
    place = damage.using(path, lambda store: damage.extent_of(store, KEY))

    class Refusing(Files):
        def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            if offset == place.block * BLOCK_BYTES:
                raise OSError(errno.EIO, "Input/output error")
            return super().preadv(fd, buffers, offset)

    report = check_directory(Refusing(), path, deep=True, repair=False, progress=lambda done, total: None)
    assert Kind.CONTENT in kinds(report)


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_table_that_cannot_be_read_costs_no_chunk(tmp_path: Path, sealed: bool) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    for first in range(0, 240 if sealed else 40, 4):
        await stored(tier, keys_of(first, 4))
    await tier.close()
    place = damage.using(path, lambda store: damage.extent_of(store, KEY))
    if sealed:
        damage.using(path, damage.trailer)
    files = BadPlaces(f"{place.segment:08d}.seg", 18 * BLOCK_BYTES)
    keys = keys_of(0, 240 if sealed else 40)
    report = check_directory(files, path, deep=True, repair=True, progress=lambda done, total: None)
    lost = [finding.where.key for finding in report.findings if finding.kind is Kind.TABLE]
    assert lost == keys_of(4, 4)
    assert report.repaired == len(report.findings) - len(lost)
    tier = await opened(path)
    assert await right(tier, keys) == keys
    await tier.close()


async def test_a_segment_of_which_much_cannot_be_read_keeps_the_rest(path: Path) -> None:
    damage.using(path, damage.trailer)
    place = damage.using(path, lambda store: damage.extent_of(store, KEY))
    bad = [block * BLOCK_BYTES for block in range(1, 30)]  # all of KEY and of what is before it
    files = BadPlaces(f"{place.segment:08d}.seg", *bad)
    report = check_directory(files, path, deep=False, repair=True, progress=lambda done, total: None)
    assert Kind.TRAILER in kinds(report)
    assert 0 < report.repaired < len(report.findings)
    tier = await opened(path)
    there = await right(tier, keys_of(0, CHUNKS))
    assert CHUNKS - 10 < len(there) < CHUNKS
    await tier.close()


async def test_the_open_segment_of_a_server_is_not_mended_under_it(path: Path) -> None:
    tier = await opened(path)
    await stored(tier, keys_of(1000, 4))
    current = tier._appender._tail._current
    assert current is not None
    damage.using(path, lambda store: damage.overwrite(store, current.name.segment, 0, bytes(BLOCK_BYTES)))
    report = checked(path, repair=True)
    assert (kinds(report), report.repaired) == ({Kind.HEADER}, 0)
    assert await right(tier, keys_of(1000, 4)) == keys_of(1000, 4)
    await tier.close()
    assert checked(path, repair=True).repaired == 1
    assert checked(path).findings == ()


async def test_nothing_is_found_wrong_while_this_process_writes_and_reclaims(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=8 * MIB)
    stop = asyncio.Event()

    async def write() -> None:
        first = 0
        while not stop.is_set():
            keys = keys_of(first, 16)
            await tier.store(keys, filled(keys))
            first += 16

    writing = asyncio.ensure_future(write())
    try:
        rounds = 0
        while rounds < 5 or not tier.stats().counters["evicted_chunks"]:
            assert (await asyncio.to_thread(checked, path)).findings == ()
            rounds += 1
    finally:
        stop.set()
        await writing
        await tier.close()


@contextmanager
def writers(path: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that store, load and reclaim without end; none is left behind."""
    children = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "process_child.py")]
            + [str(argument) for argument in (path, 8 * MIB, seed, 1 << 30)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        )
        for seed in range(count)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", child.communicate()[1]
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def evicts(store: Store) -> bool:
    with store.index.read() as txn:
        return any(segment.generation > 1 for segment in txn.segments().values())


@pytest.mark.timeout(180)
def test_nothing_is_found_wrong_while_other_processes_write_and_nothing_after_they_are_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    with writers(path, 2) as children:
        rounds = 0
        while rounds < 10 or not damage.using(path, evicts):
            report = checked(path, repair=rounds % 2 == 1)
            assert report.findings == (), report.findings[:3]
            assert all(child.poll() is None for child in children), "they go on, whatever we look at"
            rounds += 1
    left = {Kind.ORPHAN, Kind.LOST_FILE}  # a process that dies between file and record leaves one of both
    assert kinds(checked(path)) <= left
    checked(path, repair=True)
    assert checked(path).findings == ()
