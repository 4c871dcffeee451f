"""What is told of a store: its room, its namespaces, and where two of one name differ."""

from __future__ import annotations

import time
from pathlib import Path

import damage
import pytest
from nvme_rig import CHUNK_BYTES, MIB, keys_of, opened, right, stored

from kvtier.tiers.nvme.admin import survey
from kvtier.tiers.nvme.admin.survey import namespaces, usage
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.store.namespaces import Identity

CHUNKS = 40
READ = 10


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, CHUNKS))
    await right(tier, keys_of(0, READ))
    await right(tier, keys_of(0, READ))
    await tier.close()
    return path


async def test_the_room_is_told_part_by_part(path: Path) -> None:
    found = damage.using(path, usage)
    assert (found.live_chunks, found.live_bytes) == (CHUNKS, CHUNKS * CHUNK_BYTES)
    assert found.useful_bytes == READ * CHUNK_BYTES, "each chunk once, however often it was read"
    assert found.capacity_bytes == 64 * MIB
    assert {"checkpoint", "segments", "quarantine", "namespaces"} <= found.parts.keys()
    assert sum(found.parts.values()) <= found.allocated_bytes
    assert sum(found.segments.values()) == len(list((path / "segments").glob("*.seg")))
    assert found.quarantined == 0


async def test_evidence_in_quarantine_is_counted(path: Path) -> None:
    key = keys_of(7, 1)[0]
    damage.using(path, damage.flipped(key))
    tier = await opened(path)
    assert await right(tier, [key]) == []
    await tier.close()
    found = damage.using(path, usage)
    assert found.quarantined == 1
    assert found.parts["quarantine"] >= allocated_bytes(path / "quarantine") > CHUNK_BYTES


async def test_chunks_of_a_past_epoch_are_not_told(path: Path) -> None:
    tier = await opened(path)
    await tier.invalidate()
    await tier.close()
    tier = await opened(path)
    await stored(tier, keys_of(0, 2))
    await tier.close()
    assert damage.using(path, usage).live_chunks == 2
    (only,) = damage.using(path, namespaces)
    assert (only.epoch, only.chunks, only.never_read_chunks, only.hits) == (1, 2, 2, 0)


async def test_a_namespace_tells_its_hits_and_its_age(path: Path) -> None:
    (only,) = damage.using(path, namespaces)
    assert only.hits == 2 * READ
    assert only.hit_bytes == 2 * READ * CHUNK_BYTES
    assert only.never_read_chunks == CHUNKS - READ
    assert time.time() - 3600 < only.oldest_unix_s <= only.newest_unix_s <= time.time()


async def test_an_empty_namespace_has_no_age(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store")
    await tier.close()
    (only,) = damage.using(tmp_path / "store", namespaces)
    assert (only.chunks, only.oldest_unix_s, only.newest_unix_s) == (0, 0, 0)


async def test_fields_in_which_namespaces_of_one_label_differ_are_told_and_no_others(path: Path) -> None:
    for fields in ({"model": "m", "dtype": "float16", "tp": "2"}, {"model": "other", "dtype": "int8"}):
        tier = await opened(path, identity=Identity(fields))
        await stored(tier, keys_of(0, 1))
        await tier.close()
    found = {(one.label, one.fields["dtype"]): one.differing for one in damage.using(path, namespaces)}
    assert found == {
        ("m", "bfloat16"): {"dtype": "bfloat16", "tp": None},
        ("m", "float16"): {"dtype": "float16", "tp": "2"},
        ("other", "int8"): {},
    }


async def test_a_namespace_whose_file_is_damaged_is_shown_by_its_digest(path: Path) -> None:
    (file,) = (path / "namespaces").iterdir()
    file.write_text("{")
    (only,) = damage.using(path, namespaces)
    assert only.label == only.digest[:12]
    assert (only.fields, only.differing, only.chunks) == ({}, {}, CHUNKS)


async def test_a_file_that_a_server_removes_meanwhile_counts_for_nothing(path: Path) -> None:
    assert survey._size(path / "in-use.new") == 0
