"""What the system refuses has a name, costs nothing that is stored, and is said once a period."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, MIB, at_rest, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure
from kvtier.tiers.breaker import BAD_CALLS_MAX, Breaker, BreakerState
from kvtier.tiers.errors import TierError, TierUnavailable
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store import chores
from kvtier.tiers.nvme.store.mark import read_mark
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

ROUNDS = 2 * BAD_CALLS_MAX
LINES_MAX = 3  # of a whole test: one of the tier, one of the breaker, and one more where a period ends


class Refusing(Files):
    """The real files, until opens, allocations or syncs of directories are refused.

    Attributes:
        code: the errno; 0 while all works.
        calls: what is refused: "read" opens, "write" opens, "allocate", "directory".
    """

    code = 0
    calls: frozenset[str] = frozenset()

    def _refuse(self, call: str) -> None:
        if self.code and call in self.calls:
            raise OSError(self.code, os.strerror(self.code))

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        self._refuse("write" if write else "read")
        return super().open_data(path, create=create, write=write)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._refuse("allocate")
        super().allocate(fd, size_bytes)

    def sync_directory(self, path: Path) -> None:
        self._refuse("directory")
        super().sync_directory(path)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
async def test_an_open_that_is_refused_costs_nothing_that_is_stored(tmp_path: Path, code: int) -> None:
    files, keys = Refusing(), keys_of(0, 256)
    tier = await opened(tmp_path / "store", files=files)
    for start in range(0, 256, 16):
        await stored(tier, keys[start : start + 16])
    assert await right(tier, keys[:16]) == keys[:16]  # this segment's file is open now
    files.code, files.calls = code, frozenset({"read"})
    outcome = await tier.load(keys, aligned_buffers(len(keys), CHUNK_BYTES))
    assert outcome.succeeded
    assert outcome.failed
    files.code = 0
    assert await right(tier, keys) == keys
    assert tier.stats().counters["corrupt_chunks"] == 0
    await tier.close()


@pytest.mark.parametrize(
    ("code", "call", "why"),
    [
        (errno.EMFILE, "write", Failure.NO_RESOURCES),
        (errno.EMFILE, "directory", Failure.NO_RESOURCES),
        (errno.ENOMEM, "write", Failure.NO_RESOURCES),
        (errno.EFBIG, "allocate", Failure.NOT_ALLOWED),
        (errno.EROFS, "write", Failure.NOT_ALLOWED),
        (errno.EIO, "allocate", Failure.IO_ERROR),
        (errno.EIO, "write", Failure.IO_ERROR),
    ],
)
async def test_a_claim_that_is_refused_is_no_lack_of_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, call: str, why: Failure
) -> None:
    files = Refusing()
    tier = await opened(tmp_path / "store", files=files)
    breaker = Breaker(tier, slow_s=60.0)
    files.code, files.calls = code, frozenset({call})
    caplog.set_level(logging.WARNING)
    seen = set()
    for number in range(ROUNDS):
        keys = keys_of(10 * number, 4)
        seen |= set((await breaker.store(keys, filled(keys))).failed.values())
    assert seen == {why, Failure.DROPPED}, "at first by its name, then the breaker drops"
    assert breaker.state is BreakerState.OPEN
    assert len(caplog.records) <= LINES_MAX, caplog.messages
    files.code = 0
    await at_rest(tier)  # so that no refusal is under way
    await stored(tier, keys_of(1000, 4))
    await tier.close()


async def removed_under(tmp_path: Path) -> tuple[NvmeTier, Path]:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 64))
    await at_rest(tier)  # a file that is made meanwhile would stop the removal
    shutil.rmtree(path)
    return tier, path


async def test_a_directory_that_is_removed_is_given_up_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tier, path = await removed_under(tmp_path)
    await tier._upkeep.once()
    assert list(tier.lookup(keys_of(0, 64))) == [False] * 64
    outcome = await tier.load(keys_of(0, 64), aligned_buffers(64, CHUNK_BYTES))
    assert set(outcome.failed.values()) == {Failure.GONE}
    for number in range(40):
        keys = keys_of(1000 + 64 * number, 64)
        assert set((await tier.store(keys, filled(keys))).failed.values()) == {Failure.GONE}
    with pytest.raises(TierError, match=r"was removed .* until a restart"):
        await tier.flush()
    await tier.close()
    assert tier.stats().counters["corrupt_chunks"] == 0
    assert [message for message in caplog.messages if "checkpoint" in message] == []
    assert sum("was removed" in message for message in caplog.messages) == 1
    assert len(caplog.records) <= LINES_MAX, caplog.messages
    assert not path.exists(), "nothing is made anew under a tier that is given up"
    after = await opened(path)
    await stored(after, keys_of(0, 4))
    await after.close()


@pytest.mark.parametrize("first", ["load", "store", "flush"])
async def test_whoever_meets_the_removed_directory_first_notices(tmp_path: Path, first: str) -> None:
    tier, path = await removed_under(tmp_path)
    keys = keys_of(1000, 16)
    if first == "load":
        outcome = await tier.load(keys_of(0, 64), aligned_buffers(64, CHUNK_BYTES))
        assert Failure.CORRUPT not in outcome.failed.values()
    elif first == "store":
        for number in range(20):  # what is open can still be written to, until it is full
            await tier.store(keys_of(1000 + 64 * number, 64), filled(keys_of(1000 + 64 * number, 64)))
    else:
        with pytest.raises(TierError, match="was removed"):
            await tier.flush()
    await tier._upkeep.once()
    assert (await tier.store(keys, filled(keys))).failed == dict.fromkeys(keys, Failure.GONE)
    assert tier.stats().counters["corrupt_chunks"] == 0
    await tier.close()
    assert not path.exists()


@pytest.mark.parametrize("leaves", ["open", "closed"])
async def test_another_store_in_the_place_of_the_removed_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    tier, path = await removed_under(tmp_path)
    other = await opened(path)
    await stored(other, keys_of(500, 8))
    await other.flush()
    if leaves == "closed":
        await other.close()
    before = contents(path)
    await tier._upkeep.once()
    monkeypatch.setattr(chores, "CHECKPOINT_CHUNKS", 0)  # one is due at once
    await tier._lanes.upkeep(tier._keeper._chores.round)
    monkeypatch.undo()
    assert list(tier.lookup(keys_of(0, 4))) == [False] * 4
    await tier.close()
    assert contents(path) == before
    if leaves == "closed":
        other = await opened(path)
    assert await right(other, keys_of(500, 8)) == keys_of(500, 8)
    await other.close()


def contents(path: Path) -> dict[str, bytes]:
    """What is in a store's directory, but in its segments."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.mark.parametrize("moved", [False, True], ids=["removed", "moved"])
async def test_a_close_leaves_another_store_at_its_path_alone(tmp_path: Path, moved: bool) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    await at_rest(tier)
    _take_away(path, moved=moved)
    other = await opened(path)
    try:
        await stored(other, keys_of(500, 8))
        mark = (path / "in-use").read_bytes()
        await tier.close()
        assert (path / "in-use").read_bytes() == mark, "it is in use, and says by whom"
        assert not (path / "checkpoint").exists(), "the other store has none yet"
    finally:
        await other.close()


def _take_away(path: Path, *, moved: bool) -> None:
    if moved:
        path.rename(path.with_name("elsewhere"))
    else:
        shutil.rmtree(path)


@pytest.mark.parametrize("error", [RuntimeError("no thread"), ValueError("a damaged record")])
async def test_upkeep_survives_whatever_it_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=16 * MIB)
    real, left = tier._lanes.upkeep, [3]

    async def upkeep(call: object) -> object:
        if left[0]:
            left[0] -= 1
            raise error
        return await real(call)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(tier._lanes, "upkeep", upkeep)
        await tier._upkeep.once()
        await tier._upkeep.once()
        await tier._upkeep.once()
    assert not any(task._task.done() for task in tier._upkeep._tasks)
    assert tier.stats().counters["io_errors"] > 0
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    await stored(tier, keys_of(0, 4))
    await tier._upkeep.once()
    await tier.close()


@pytest.mark.parametrize(
    "step", ["_upkeep.stop", "_loader.close", "_view.record", "_durability.close", "_ahead.close"]
)
async def test_a_close_that_fails_half_way_leaves_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tier = await opened(tmp_path / "store")
    await stored(tier, keys_of(0, 4))
    await tier._upkeep.once()
    part, name = step.split(".")
    if part == "_ahead":  # no other way to give back what is ready, and the test leaves nothing behind
        tier._upkeep._keeper.stop()
        await at_rest(tier)
        await tier._ahead.close()
    calls = list[int]()

    def refuse(*arguments: object) -> object:
        calls.append(1)
        raise RuntimeError("cannot")

    with monkeypatch.context() as patched:
        patched.setattr(getattr(tier, part), name, refuse)
        await tier.close()
    assert calls
    if part in ("_upkeep", "_durability"):  # what was not done, so that the test leaves nothing behind
        for task in tier._upkeep._tasks:
            await task.stop()
        await tier._durability.close()
    mark = read_mark(tmp_path / "store")
    assert mark is not None
    assert mark.closed
    after = await opened(tmp_path / "store")
    assert await right(after, keys_of(0, 4)) == keys_of(0, 4)
    await after.close()


@pytest.mark.parametrize("now_s", [-500.0, 2.0**32 + 1], ids=["1969", "2106"])
async def test_a_clock_far_off_fails_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: float
) -> None:
    tier = await opened(tmp_path / "store")
    try:
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda: now_s)
            await stored(tier, keys_of(0, 8))
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    finally:
        await tier.close()


async def test_two_that_see_at_once_that_the_directory_is_gone_say_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(tmp_path / "store")
    presence, both = tier._presence, threading.Barrier(2)

    class Slow:
        root = tmp_path / "store"

        def is_there(self) -> bool:
            both.wait(30)
            return False

    presence._directory = Slow()  # type: ignore[assignment]
    lookers = [threading.Thread(target=presence.look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()
    assert caplog.text.count("was removed while it was in use") == 1
    await tier.close()


@pytest.mark.parametrize("name", ["in-use", "lock", "kvtier.json"])
async def test_a_directory_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await tier.close()
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(TierUnavailable, match=f"{path / name} "):
        await opened(path)
