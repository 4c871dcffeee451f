"""The room of a document's drives: what was found is made up, and what is said of it is checked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from engine_rig import CHUNK_BYTES, config
from hypothesis import given
from hypothesis import strategies as st
from nvme_rig import keys_of, opened, stored

from kvtier.factory.composite import CompositeSpec
from kvtier.factory.config import load_config, probe_config, resolve_config, rooms
from kvtier.factory.room import Cap, Found, Room, Wanted, cap_of, fair_share, room_remarks, rooms_by
from kvtier.tiers import ConfigError

GIB = 1 << 30
MIB = 1 << 20

EMPTY = Found("disk", "ext4 on /dev/x at /mnt", 100 * GIB, 40 * GIB, 0, 0, False)
ALMOST_ALL = "99.999%"  # of any file system: what is left is less than two segments of a large tier


def wanted(capacity_bytes: int, reserve_bytes: int = 0, name: str = "a") -> Wanted:
    return Wanted(f"tiers.{name}", f"tiers.{name}.path", Path(f"/mnt/{name}"), capacity_bytes, reserve_bytes)


def room(capacity_bytes: int, reserve_bytes: int = 0, **found: Any) -> Room:
    drive = wanted(capacity_bytes, reserve_bytes)
    return rooms_by({drive.place: EMPTY._replace(**found)}, [drive], MIB)[0]


def test_the_cap_is_the_capacity_where_there_is_room_for_it() -> None:
    one = room(30 * GIB, 10 * GIB)
    assert (one.cap_bytes, one.bound_by, one.is_none) == (30 * GIB, "capacity", False)
    assert one.remarks() == []


def test_the_cap_is_what_reserve_and_others_leave() -> None:
    one = room(200 * GIB, 10 * GIB)
    assert (one.cap_bytes, one.bound_by) == (30 * GIB, "free space")
    assert one.line() == (
        "ext4 on /dev/x at /mnt: 40GiB of 100GiB free; the tier can take 30GiB (free space)"
    )
    assert one.remarks() == [
        "tiers.a.capacity: 200GiB is more than the whole file system of /mnt/a (100GiB); "
        "the tier can take 30GiB at most"
    ]


def test_what_the_store_takes_already_is_its_own() -> None:
    full = room(60 * GIB, 10 * GIB, free_bytes=10 * GIB, own_bytes=50 * GIB, segment_bytes=256 * MIB)
    assert (full.cap_bytes, full.is_none) == (50 * GIB, False)


def test_a_tier_that_can_hold_nothing_says_what_to_free() -> None:
    one = room(50 * GIB, 95 * GIB)
    assert (one.cap_bytes, one.is_none) == (0, True)
    place, text = one.lacking()
    assert place == "tiers.a.reserve"
    assert text.startswith(
        "95GiB must stay free on the file system of /mnt/a (ext4 on /dev/x at /mnt), which has 40GiB free: "
        'the tier can hold nothing. Lower "reserve", or free 55.'
    )


def test_where_no_reserve_is_low_enough_it_says_what_to_free() -> None:
    place, text = room(50 * GIB, 0, free_bytes=64 << 10).lacking()
    assert place == "tiers.a.path"
    assert text.endswith("has 64KiB free: the tier can hold nothing. Free 512.3MiB")


def test_where_only_the_segments_are_too_large_it_names_a_capacity_that_works() -> None:
    one = room(2048 * GIB, 0, free_bytes=GIB // 4)
    place, text = one.lacking()
    assert (place, one.is_none) == ("tiers.a.capacity", True)
    assert text.endswith(f'Lower "capacity", for example to {GIB // 4}')
    assert not room(GIB // 4, 0, free_bytes=GIB // 4).is_none


def test_two_on_one_file_system_share_what_is_free() -> None:
    drives = [wanted(30 * GIB), wanted(30 * GIB, name="b"), wanted(4 * GIB, name="c")]
    here = {drive.place: EMPTY for drive in drives}
    found = rooms_by(here, drives, MIB)
    assert [one.cap_bytes for one in found] == [18 * GIB, 18 * GIB, 4 * GIB]
    assert [one.bound_by for one in found] == ["other tiers", "other tiers", "capacity"]
    assert room_remarks(found) == [
        "tiers.a.path, tiers.b.path and tiers.c.path are on one file system (ext4 on /dev/x at /mnt): "
        "together they want 64GiB, it has room for 40GiB"
    ]
    assert cap_of(found[:2]) == Cap(36 * GIB, "other tiers")
    apart = rooms_by({**here, "tiers.b.path": EMPTY._replace(volume="other")}, drives, MIB)
    assert apart[1].cap_bytes == 30 * GIB


@given(
    st.integers(0, 1 << 40),
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=6),
)
def test_shares_take_what_is_there_and_no_more(available: int, wants: list[int]) -> None:
    shares = [fair_share(available, wants, want) for want in wants]
    assert all(share <= want for share, want in zip(shares, wants, strict=True))
    assert min(available, sum(wants)) - len(wants) <= sum(shares) <= available


def large(path: Path) -> dict[str, Any]:
    document = config(path, capacity="8GiB")
    document["tiers"][2]["reserve"] = ALMOST_ALL
    return document


def probed(document: dict[str, Any]) -> None:
    probe_config(resolve_config(load_config(document), chunk_bytes=CHUNK_BYTES), chunk_bytes=CHUNK_BYTES)


async def test_a_start_refuses_a_new_store_that_can_hold_nothing(tmp_path: Path) -> None:
    spec = CompositeSpec.from_config(large(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"tiers\[2\]\.reserve: .* the tier can hold nothing"):
        await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})
    assert not (tmp_path / "store").exists()


async def test_a_start_goes_on_where_there_are_chunks_already(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(tmp_path / "store")
    await stored(tier, keys_of(0, 4))
    await tier.close()
    spec = CompositeSpec.from_config(large(tmp_path / "store"))
    with caplog.at_level(logging.WARNING):
        await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})
    found = spec.caps["nvme"]
    await spec.close()
    assert "tiers[2].reserve: " in caplog.text
    assert "the tier can hold nothing" in caplog.text
    assert found.bound_by == "free space"


def test_one_drive_of_several_that_can_hold_nothing_is_a_warning(tmp_path: Path) -> None:
    places = [
        {"path": str(tmp_path / "full"), "capacity": "8GiB", "reserve": ALMOST_ALL},
        {"path": str(tmp_path / "good"), "capacity": "8MiB", "reserve": 0},
    ]
    document = large(tmp_path)
    document["tiers"][2]["path"] = places
    probed(document)
    resolved = resolve_config(load_config(document), chunk_bytes=CHUNK_BYTES)
    said = room_remarks(tuple(rooms(resolved, chunk_bytes=CHUNK_BYTES).values()))
    assert any(remark.startswith("tiers[2].path[0].reserve: ") for remark in said)
    document["tiers"][2]["path"] = places[:1]
    with pytest.raises(ConfigError, match="the tier can hold nothing"):
        probed(document)
