"""`kvtier export` and what it writes; `test_import.py` brings it back."""

from __future__ import annotations

import asyncio
import io
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import damage
import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, keys_of, opened, right, stored
from store_cli import CHUNKS, READ_BACK_CHUNKS, usage, with_tier

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.admin.pack_file import read_head, read_records
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.store.opening import Store
from kvtier.tiers.nvme.tier import NvmeTier

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return tmp_path / "chunks.kvtpack"


def spoil(store: Store, key: ChunkKey) -> None:
    place = damage.extent_of(store, key)
    damage.overwrite(store, place.segment, place.block * BLOCK_BYTES + 7, b"spoilt")


def keys_in(pack: Path) -> list[bytes]:
    with pack.open("rb") as file:
        assert read_head(file).identity.digest == IDENTITY.digest
        return [record.key for record in read_records(file)]


def test_a_pack_has_every_chunk_in_the_order_in_which_they_were_stored(
    run: Run, path: Path, pack: Path
) -> None:
    assert run("export", path, "-o", pack) == (0, f"packed {CHUNKS} chunks, 640KiB\n", "")
    assert keys_in(pack) == keys_of(0, CHUNKS)
    assert stat.S_IMODE(pack.stat().st_mode) == 0o600, "it is as private as the store"


def test_an_export_is_no_use_of_the_chunks(run: Run, path: Path, pack: Path) -> None:
    run("export", path, "-o", pack)
    assert usage(path)["useful_bytes"] == READ_BACK_CHUNKS * CHUNK_BYTES


def test_the_standard_output_may_take_the_pack(
    run: Run, path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pack.open("wb") as file:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file))
        assert run("export", path)[::2] == (0, f"packed {CHUNKS} chunks, 640KiB\n")
    assert keys_in(pack) == keys_of(0, CHUNKS)


def test_no_terminal_gets_a_pack(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    message = "--output: a pack is not for a terminal; name a FILE, or use a pipe\n"
    assert run("export", path) == (2, "", message)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--key-prefix", b"chunk-000000003".hex()], keys_of(30, 10)),
        (["--newest", "48KiB"], keys_of(0, 3)),
        (["--newest", "0"], []),
        (["--namespace", "m"], keys_of(0, CHUNKS)),
        (["--namespace", IDENTITY.digest.hex()[:12]], keys_of(0, CHUNKS)),
    ],
)
def test_a_pack_has_what_was_asked_for(
    run: Run, path: Path, pack: Path, options: list[str], expected: list[bytes]
) -> None:
    # All were stored within one second or two, and of those the heads come first.
    code, _, errors = run("export", path, "-o", pack, *options)
    assert (code, errors) == (0, "")
    assert len(keys_in(pack)) == len(expected)
    assert "--newest" in options or keys_in(pack) == expected


def test_the_figures_are_printed_as_json(run: Run, path: Path, pack: Path) -> None:
    code, output, _ = run("export", path, "-o", pack, "--json")
    assert code == 0
    assert json.loads(output) == {
        "command": "export",
        "version": 1,
        "path": str(path),
        "namespace": IDENTITY.digest.hex(),
        "chunks": CHUNKS,
        "size_bytes": CHUNKS * CHUNK_BYTES,
        "gone_chunks": 0,
        "damaged_chunks": 0,
    }


def test_of_several_namespaces_one_is_to_be_named(run: Run, path: Path, pack: Path) -> None:
    other = Identity({"model": "m", "dtype": "float8"})

    async def fill(tier: NvmeTier) -> None:
        await stored(tier, keys_of(0, 1))

    with_tier(path, fill, identity=other)
    code, _, errors = run("export", path, "-o", pack)
    assert code == 2
    assert errors.startswith("--namespace: a pack holds one namespace; name one of m ")
    assert IDENTITY.digest.hex()[:12] in errors
    assert other.digest.hex()[:12] in errors
    assert not pack.exists()


def test_where_nothing_matches_there_is_no_pack(run: Run, path: Path, pack: Path) -> None:
    assert run("export", path, "-o", pack, "--namespace", "nosuch") == (1, "", "nothing matches\n")
    assert not pack.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json"], "--json: needs --output"),
        (["--resume"], "--resume: needs --output"),
        (["--newest", "5%", "-o", "x"], "--newest: should be a size"),
        (["--namespace", "", "-o", "x"], "--namespace: is empty"),
        (["--key-prefix", "xy", "-o", "x"], "--key-prefix: should be pairs of hex digits"),
    ],
)
def test_a_wrong_option_is_named(run: Run, path: Path, options: list[str], message: str) -> None:
    code, output, errors = run("export", path, *options)
    assert (code, output) == (2, "")
    assert errors.startswith(message)


def test_a_file_that_is_there_is_not_overwritten(run: Run, path: Path, pack: Path) -> None:
    pack.write_text("dear to somebody")
    assert run("export", path, "-o", pack) == (
        2,
        "",
        f"--output: {pack} is there; --resume goes on with it\n",
    )
    code, _, errors = run("export", path, "-o", pack, "--resume")
    assert (code, errors) == (2, f"--resume: {pack}: not a pack of kvtier's\n")
    assert pack.read_text() == "dear to somebody"


def test_an_export_that_was_cut_goes_on_behind_the_last_chunk_that_is_right(
    run: Run, path: Path, pack: Path
) -> None:
    run("export", path, "-o", pack)
    whole = pack.read_bytes()
    record_bytes = (len(whole) - whole.index(b"KVTe")) + CHUNK_BYTES + len(keys_of(0, 1)[0])
    first_end = whole.index(b"KVTc") + record_bytes
    for cut in (0, first_end - 1, first_end, first_end + 1, len(whole) - 1, len(whole)):
        pack.write_bytes(whole[:cut])
        assert run("export", path, "-o", pack, "--resume")[:2] == (0, f"packed {CHUNKS} chunks, 640KiB\n")
        assert pack.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[first_end + 100] ^= 1  # as after a power loss
    pack.write_bytes(damaged)
    run("export", path, "-o", pack, "--resume")
    assert pack.read_bytes() == whole


def test_a_pack_goes_on_with_what_came_since_but_not_for_another_epoch(
    run: Run, path: Path, pack: Path
) -> None:
    run("export", path, "-o", pack)

    async def add(tier: NvmeTier) -> None:
        await stored(tier, keys_of(CHUNKS, 2))

    with_tier(path, add)
    assert run("export", path, "-o", pack, "--resume")[0] == 0
    assert keys_in(pack) == keys_of(0, CHUNKS + 2)

    async def reset(tier: NvmeTier) -> None:
        await tier.clear()
        await stored(tier, keys_of(0, 1))

    with_tier(path, reset)
    code, _, errors = run("export", path, "-o", pack, "--resume")
    assert code == 2
    assert errors == f"--resume: {pack}: it was begun for another namespace, epoch or store; remove it\n"


def test_a_damaged_chunk_is_left_out_and_said(run: Run, path: Path, pack: Path) -> None:
    (key,) = keys_of(5, 1)
    damage.using(path, lambda store: spoil(store, key))
    code, output, _ = run("export", path, "-o", pack)
    assert code == 1
    assert output.endswith("; 1 are damaged and left out: see kvtier fsck --deep\n")
    assert keys_in(pack) == [one for one in keys_of(0, CHUNKS) if one != key]


def test_a_drive_without_room_is_one_message(run: Run, path: Path) -> None:
    code, _, errors = run("export", path, "-o", "/dev/full", "--resume")
    assert code in (1, 2)
    assert "No space left on device" in errors


async def test_servers_may_use_the_store_meanwhile(run: Run, path: Path, pack: Path) -> None:
    tier = await opened(path)
    try:
        assert (await asyncio.to_thread(run, "export", path, "-o", pack))[0] == 0
        assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    finally:
        await tier.close()
    assert keys_in(pack) == keys_of(0, CHUNKS)
