"""`kvtier du|ls|rm|fsck` on real stores: whole, damaged, and while a tier has them open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, KIB, filled, keys_of, opened, right, stored
from typer.testing import CliRunner

from kvtier.factory.cli import app, main
from kvtier.tiers.files import BLOCK_BYTES, Files, allocated_bytes
from kvtier.tiers.fsck import check
from kvtier.tiers.identity import Identity
from kvtier.tiers.index import Extent
from kvtier.tiers.nvme import NvmeTier
from kvtier.tiers.store import Store, close_store, open_existing

CHUNKS = 40


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def run_json(*arguments: str) -> Any:
    code, output = run(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def with_tier(path: Path, work: Callable[[NvmeTier], Awaitable[object]], **changes: Any) -> None:
    async def whole() -> None:
        tier = await opened(path, **changes)
        try:
            await work(tier)
        finally:
            await tier.close()

    asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 chunks, of which 10 were read back."""
    path = tmp_path / "store"

    async def fill(tier: NvmeTier) -> None:
        await stored(tier, keys_of(0, CHUNKS))
        await right(tier, keys_of(0, 10))

    with_tier(path, fill)
    return path


def change(path: Path, work: Callable[[Store], object]) -> None:
    store = open_existing(Files(), path)
    try:
        work(store)
    finally:
        close_store(store)


def test_du_tells_what_was_ever_of_use(path: Path) -> None:
    found = run_json("du", str(path))
    assert found["live_chunks"] == CHUNKS
    assert found["live_bytes"] == CHUNKS * CHUNK_BYTES
    assert found["useful_bytes"] == 10 * CHUNK_BYTES
    # The mark that the store is in use is a file of its own while we look.
    assert found["allocated_bytes"] - allocated_bytes(path) in (0, BLOCK_BYTES)
    assert sum(found["parts"].values()) <= found["allocated_bytes"]
    code, text = run("du", str(path))
    assert code == 0
    assert "160KiB (25.0 %)" in text


def test_ls_shows_each_namespace_and_its_fields(path: Path) -> None:
    other = Identity({"model": "other", "dtype": "float16"})
    with_tier(path, lambda tier: stored(tier, keys_of(0, 3)), identity=other)
    found = {one["label"]: one for one in run_json("ls", str(path))}
    assert {label: one["chunks"] for label, one in found.items()} == {"m": CHUNKS, "other": 3}
    assert found["m"]["never_read_chunks"] == CHUNKS - 10
    assert found["m"]["hits"] == 10
    assert found["other"]["fields"] == {"model": "other", "dtype": "float16"}
    code, text = run("ls", str(path), "--fields")
    assert code == 0
    assert "float16" in text


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--never-read"], 10),
        (["--key-prefix", b"chunk-000000003".hex()], CHUNKS - 10),
        (["--namespace", "m"], 0),
        (["--namespace", "nobody's"], CHUNKS),
        (["--older-than", "1h"], CHUNKS),
        (["--namespace", "m", "--never-read", "--dry-run"], CHUNKS),
        (["--all"], 0),
    ],
)
def test_rm_removes_what_all_options_name_and_no_more(path: Path, options: list[str], left: int) -> None:
    found = run_json("rm", str(path), *options)
    assert run_json("du", str(path))["live_chunks"] == left
    assert found["removed"] == ("--dry-run" not in options)


def test_what_rm_removed_stays_away_when_the_index_is_lost(path: Path) -> None:
    run_json("rm", str(path), "--never-read")
    for file in (path / "index").iterdir():
        file.unlink()
    assert run_json("du", str(path))["live_chunks"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to remove"),
        (["--key-prefix", "xyz"], "--key-prefix: should be whole bytes in hex"),
        (["--older-than", "soon"], "--older-than: should be a number and s, m, h or d"),
        (["--namespace", "", "--never-read"], "--namespace: is empty"),
        (["--older-than", "", "--all"], "--older-than: is empty"),
    ],
)
def test_rm_refuses_what_it_cannot_understand(path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rm", str(path), *options])
    assert message in str(result.exception)


@pytest.mark.parametrize("command", [["du"], ["ls"], ["rm", "--all"], ["fsck"]])
def test_a_path_without_a_store_is_one_message_and_wrong_input(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kvtier", *command, str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path} is no store: it has no kvtier.json\n"
    assert list(tmp_path.iterdir()) == []


def test_a_whole_store_is_clean(path: Path) -> None:
    assert run("fsck", str(path), "--deep")[0] == 0


def flip(path: Path, key: bytes) -> None:
    """Flip a byte in the middle of a chunk."""

    def place(store: Store) -> None:
        with store.index.read() as txn:
            found = next(extent for _, name, extent in txn.extents() if name == key)
        file = store.directory.segment_path(found.segment)
        with file.open("r+b") as data:
            data.seek(found.block * BLOCK_BYTES + 8 * KIB)
            byte = data.read(1)
            data.seek(-1, 1)
            data.write(bytes([byte[0] ^ 1]))

    change(path, place)


def misplaced(store: Store) -> None:
    def put(txn: Any) -> None:
        scope = txn.namespace(IDENTITY.digest).scope
        txn.put_extent(scope, b"nowhere", Extent(999, 1, 1, CHUNK_BYTES, 1, 1, 0, 0))

    store.index.write(put)


def miscounted(store: Store) -> None:
    def put(txn: Any) -> None:
        number, segment = next(iter(txn.segments().items()))
        txn.put_segment(number, segment._replace(live_chunks=segment.live_chunks + 5))

    store.index.write(put)


def orphaned(store: Store) -> None:
    store.directory.segment_path(77).write_bytes(bytes(BLOCK_BYTES))


def unfiled(store: Store) -> None:
    next(iter(store.directory.segment_files().values())).unlink()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (misplaced, "place"),
        (miscounted, "sums"),
        (orphaned, "orphan"),
        (unfiled, "lost file"),
        (lambda store: flip(store.directory.root, keys_of(7, 1)[0]), "content"),
    ],
    ids=["place", "sums", "orphan", "lost file", "content"],
)
def test_each_kind_of_damage_is_found_and_mended(
    path: Path, damage: Callable[[Store], None], kind: str
) -> None:
    change(path, damage)
    code, text = run("fsck", str(path), "--deep")
    assert code == 1
    assert f"{kind}: " in text
    assert run("fsck", str(path), "--deep", "--repair")[0] == 0
    if kind != "lost file":  # the record goes when its room is asked for
        assert run("fsck", str(path), "--deep")[0] == 0


def test_a_damaged_trailer_is_found_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with_tier(path, lambda tier: stored(tier, keys_of(0, 200)))

    def damage(store: Store) -> None:
        with store.index.read() as txn:
            sealed = next(n for n, segment in txn.segments().items() if segment.state.name == "SEALED")
        with store.directory.segment_path(sealed).open("r+b") as data:
            data.seek(-BLOCK_BYTES, 2)
            data.write(bytes(BLOCK_BYTES))

    change(path, damage)
    assert run("fsck", str(path))[0] == 1
    assert run("fsck", str(path), "--repair")[0] == 0
    assert run("fsck", str(path), "--deep")[0] == 0


async def test_nothing_is_found_wrong_while_a_server_writes_and_reclaims(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=8 << 20)
    stop = asyncio.Event()

    async def write() -> None:
        first = 0
        while not stop.is_set():
            keys = keys_of(first, 16)
            await tier.store(keys, filled(keys))
            first += 16

    writing = asyncio.ensure_future(write())
    store = await asyncio.to_thread(open_existing, Files(), path)
    try:
        for _ in range(3):
            report = await asyncio.to_thread(check, store, deep=True, repair=False, told=lambda _: None)
            assert report.findings == ()
    finally:
        stop.set()
        await writing
        await asyncio.to_thread(close_store, store)
        await tier.close()
