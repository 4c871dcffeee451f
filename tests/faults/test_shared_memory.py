"""The index in shared memory"""

from __future__ import annotations

from pathlib import Path

import damage
import pytest
from faults import fault
from loop_rig import drive
from mounts import run
from nvme_rig import MIB, filled, keys_of, names, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.cgroups import MemoryGroup
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.index import memory

CAPACITY_BYTES = 16 * MIB
OLD, NEW = keys_of(0, 40), keys_of(100, 40)


@fault(
    "a cleaner removes files of the index, one or all (systemd's RemoveIPC, tmpfiles)",
    sees="one line in the log; servers that use the store go on, and no other can join",
    loses="nothing",
    heals="once all that use the store have stopped, at the next start",
)
@pytest.mark.parametrize("name", memory.FILES)
async def test_files_are_cleaned_away(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, OLD)
    (damage.home_of(path) / name).unlink()
    with StoreProcess(path) as other:
        assert other.greeting.startswith("OutOfReach")
    await stored(tier, NEW)
    await tier._keeper.stop()
    tier._keeper._chores.round()
    assert caplog.text.count("has removed or replaced the index") == 1
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    assert await right(tier, OLD + NEW) == OLD + NEW
    await tier.close()


@fault(
    "the index is damaged (bad memory, a fault of kvtier's or LMDB's)",
    sees="misses, and stores that fail; no byte is wrong",
    loses="nothing",
    heals="at the next start, from the log; the one after that, where the damage ends the process",
)
async def test_the_index_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await stored(tier, OLD)
    tables = tier._index._shared.tables
    tier._index.write(lambda txn: txn._txn.put(b"\0\0\0\1" + OLD[7], b"torn", db=tables.extents))
    await right(tier, OLD)
    await tier.store(NEW, filled(NEW))
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    await tier._keeper.caught_up()
    assert await right(tier, OLD) == OLD
    await stored(tier, NEW)
    await tier.close()


@fault(
    "shared memory is too small for the index",
    sees="`TierUnavailable` that says how much it needs; nothing is made",
    loses="nothing",
    heals="with more of it (`--shm-size`, an emptyDir of medium Memory), or a smaller capacity",
)
@pytest.mark.root
async def test_too_little_shared_memory(tmp_path: Path) -> None:
    with drive("tmpfs", tmp_path, MIB) as small:
        with pytest.raises(TierUnavailable, match="it may take"):
            await opened(tmp_path / "store", memory=small.point)
        assert names(small.point) == []
    assert not (tmp_path / "store").exists()


@fault(
    "the container's memory is too small for the index (a memory cgroup that is full)",
    sees="`TierUnavailable` that names the limit's file, or a warning where only a full store outgrows it",
    loses="nothing",
    heals="with more memory, or a smaller capacity",
)
async def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = MemoryGroup(Path("/sys/fs/cgroup/memory.max"), 64 * MIB, 4096)
    monkeypatch.setattr(memory, "memory_groups", lambda *_: iter([group]))
    with pytest.raises(TierUnavailable, match=r"/sys/fs/cgroup/memory\.max"):
        await opened(tmp_path / "store")
    assert not (tmp_path / "store").exists()


@fault(
    "the directory for temporary files is full, or cannot be written",
    sees="nothing: a store makes no file there",
    loses="nothing",
    heals="-",
)
@pytest.mark.root
async def test_no_room_for_temporary_files(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=CAPACITY_BYTES)
    await stored(tier, OLD)
    with drive("tmpfs", tmp_path, MIB) as full:
        full.fill()
        run("mount", "-o", "remount,ro", full.point)
        with StoreProcess(tmp_path / "store", within=("env", f"TMPDIR={full.point}")) as other:
            assert other.ask(f"look 0 {len(OLD)}") == str(len(OLD))
            assert other.ask("close") == "closed"
    await tier.close()
