"""Evidence stays within a bound that follows the cap."""

from __future__ import annotations

from pathlib import Path

import damage
from nvme_rig import CHUNK_BYTES, KIB, MIB, keys_of, names, opened, stored

from kvtier.tiers.nvme.io.files import Files, allocated_bytes
from kvtier.tiers.nvme.store.quarantine import FILES_MAX, Quarantine
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

LARGE, SMALL = 64 * MIB, 8 * MIB


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    quarantine = Quarantine(Files(), tmp_path)
    for number in range(FILES_MAX + 2):
        quarantine.add({"number": number}, b"", MIB)
    heads = [(tmp_path / name).read_bytes() for name in names(tmp_path)]
    assert heads == [b'{"number": %d}\n' % number for number in range(2, FILES_MAX + 2)]


def test_a_trim_within_the_bound_takes_nothing(tmp_path: Path) -> None:
    quarantine = Quarantine(Files(), tmp_path)
    for number in range(FILES_MAX):
        quarantine.add({"number": number}, b"", MIB)
    quarantine.trim(MIB)
    assert len(names(tmp_path)) == FILES_MAX
    quarantine.trim(40 * KIB)
    assert len(names(tmp_path)) == 9
    quarantine.trim(0)
    assert names(tmp_path) == []


async def collect_evidence(tier: NvmeTier, path: Path, first: int) -> None:
    keys = keys_of(first, 20)
    await stored(tier, keys)
    damage.using(path, lambda store: [damage.flipped(key)(store) for key in keys])
    outcome = await tier.load(keys, aligned_buffers(len(keys), CHUNK_BYTES))
    assert len(outcome.failed) == len(keys)


async def test_evidence_is_within_the_cap_that_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "store"
    first = await opened(path, capacity_bytes=LARGE)
    await collect_evidence(first, path, 0)
    assert SMALL // 32 < allocated_bytes(path / "quarantine") <= LARGE // 32
    second = await opened(path, capacity_bytes=SMALL)
    assert 0 < allocated_bytes(path / "quarantine") <= SMALL // 32
    await collect_evidence(first, path, 100)
    assert 0 < allocated_bytes(path / "quarantine") <= SMALL // 32
    await first.close()
    await second.close()
