"""`kvtier import`: what a pack brings back, and what it refuses."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, MIB, keys_of, opened, right, stored
from store_cli import CHUNKS, usage, with_tier

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.store.namespaces import Identity, one_process
from kvtier.tiers.nvme.tier import NvmeTier

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pack(run: Run, path: Path, tmp_path: Path) -> Path:
    """All chunks of the store at `path`."""
    file = tmp_path / "chunks.kvtpack"
    assert run("export", path, "-o", file)[0] == 0
    return file


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A directory that a server of the same identity has made, with the first two chunks in it."""
    root = tmp_path / "other"
    with_tier(root, lambda tier: stored(tier, keys_of(0, 2)))
    return root


def there(root: Path, **changes: Any) -> list[ChunkKey]:
    """The chunks that a server finds, with their bytes right."""
    found: list[ChunkKey] = []

    async def look(tier: NvmeTier) -> None:
        found.extend(await right(tier, keys_of(0, CHUNKS)))

    with_tier(root, look, **changes)
    return found


def test_a_server_finds_what_was_imported(run: Run, pack: Path, other: Path) -> None:
    assert run("import", other, pack) == (0, f"imported {CHUNKS - 2} chunks, 608KiB; 2 were there\n", "")
    assert there(other) == keys_of(0, CHUNKS)
    assert usage(other)["capacity_bytes"] == 64 * MIB, "the cap is the server's"
    assert run("fsck", other, "--deep")[0] == 0


def test_importing_again_writes_nothing(run: Run, pack: Path, other: Path) -> None:
    run("import", other, pack)
    written_bytes = usage(other)["written_bytes"]
    assert run("import", other, pack) == (0, f"imported 0 chunks, 0B; {CHUNKS} were there\n", "")
    assert usage(other)["written_bytes"] < written_bytes + CHUNK_BYTES


def test_a_pipe_may_bring_the_pack(
    run: Run, pack: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pack.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, output, _ = run("import", other, "-", "--json")
    assert code == 0
    assert json.loads(output) == {
        "command": "import",
        "version": 1,
        "path": str(other),
        "chunks": CHUNKS - 2,
        "size_bytes": (CHUNKS - 2) * CHUNK_BYTES,
        "there_chunks": 2,
        "evicted_chunks": 0,
        "damaged_chunks": 0,
        "failed": {},
        "error": None,
    }


def test_a_server_may_use_the_directory_meanwhile(run: Run, pack: Path, other: Path) -> None:
    async def beside(tier: NvmeTier) -> None:
        assert (await asyncio.to_thread(run, "import", other, pack))[0] == 0
        assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)

    with_tier(other, beside)


def test_chunks_of_another_identity_are_refused_with_the_field(run: Run, pack: Path, tmp_path: Path) -> None:
    root = tmp_path / "float8"
    identity = Identity({"model": "m", "dtype": "float8_e4m3fn"})
    with_tier(root, lambda tier: stored(tier, keys_of(0, 1)), identity=identity)
    expected = (
        'dtype: the pack has "bfloat16", the store\'s m has "float8_e4m3fn"; '
        "or import it all the same with --new-namespace, for servers to come\n"
    )
    assert run("import", root, pack) == (2, "", expected)
    assert there(root, identity=identity) == keys_of(0, 1)
    assert run("import", root, pack, "--new-namespace")[0] == 0
    assert there(root) == keys_of(0, CHUNKS)
    assert there(root, identity=identity) == keys_of(0, 1)


def test_what_was_reset_since_does_not_come_back(run: Run, path: Path, pack: Path) -> None:
    with_tier(path, lambda tier: tier.clear())
    expected = f"{path} was reset since the pack was made: its chunks are outdated; export it again\n"
    assert run("import", path, pack) == (2, "", expected)
    assert there(path) == []


def test_another_directory_that_was_reset_takes_the_pack(run: Run, pack: Path, other: Path) -> None:
    with_tier(other, lambda tier: tier.clear())
    assert run("import", other, pack)[0] == 0
    assert there(other) == keys_of(0, CHUNKS)


def test_a_namespace_of_one_process_is_not_exported(run: Run, tmp_path: Path) -> None:
    root, identity = tmp_path / "own", Identity({**IDENTITY.fields, **one_process()})

    async def fill(tier: NvmeTier) -> None:
        await stored(tier, keys_of(0, 1))
        code, _, errors = await asyncio.to_thread(run, "export", root, "-o", tmp_path / "x")
        assert (code, errors) == (1, "nothing matches\n")

    with_tier(root, fill, identity=identity)


def test_a_damaged_chunk_is_left_out_and_the_others_come(run: Run, pack: Path, other: Path) -> None:
    damaged = bytearray(pack.read_bytes())
    damaged[damaged.index(keys_of(7, 1)[0]) + 500] ^= 1
    pack.write_bytes(damaged)
    code, output, _ = run("import", other, pack)
    assert (code, output) == (
        1,
        f"imported {CHUNKS - 3} chunks, 592KiB; 2 were there; 1 are damaged and left out\n",
    )
    assert there(other) == keys_of(0, 7) + keys_of(8, CHUNKS - 8)


def test_of_a_pack_that_was_cut_comes_what_is_there(run: Run, pack: Path, other: Path) -> None:
    pack.write_bytes(pack.read_bytes()[: -5 * CHUNK_BYTES])
    code, _, errors = run("import", other, pack)
    assert (code, errors) == (1, "the pack ends early, in chunk 36\n")
    assert there(other) == keys_of(0, 35)


def test_a_pack_larger_than_the_cap_leaves_the_directory_under_it(run: Run, tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    with_tier(big, lambda tier: stored(tier, keys_of(0, 512)))
    run("export", big, "-o", tmp_path / "pack")
    with_tier(small, lambda tier: stored(tier, keys_of(0, 1)), capacity_bytes=4 * MIB)
    code, output, _ = run("import", small, tmp_path / "pack", "--json")
    assert code == 0, output
    assert json.loads(output)["evicted_chunks"] > 0
    assert usage(small)["allocated_bytes"] <= 4 * MIB
    assert 0 < usage(small)["live_chunks"] < 4 * MIB // CHUNK_BYTES
    assert run("fsck", small, "--deep")[0] == 0


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a pack of kvtier's"), (b"KVTPACK\x02", "a pack of format 02")]
)
def test_what_is_no_pack_is_refused(run: Run, other: Path, pack: Path, content: bytes, message: str) -> None:
    pack.write_bytes(content)
    code, output, errors = run("import", other, pack)
    assert (code, output) == (2, "")
    assert errors.startswith(f"{pack}: {message}")


def test_a_directory_without_a_store_and_a_file_that_is_missing_are_refused(
    run: Run, pack: Path, other: Path, tmp_path: Path
) -> None:
    assert run("import", tmp_path, pack)[:2] == (2, "")
    missing = tmp_path / "missing"
    assert run("import", other, missing) == (2, "", f"{missing}: No such file or directory\n")


async def test_a_store_that_cannot_take_such_chunks_says_so(run: Run, tmp_path: Path) -> None:
    tier = await opened(tmp_path / "large", chunk_bytes=4 * MIB)
    await stored(tier, keys_of(0, 1), 4 * MIB)
    await tier.close()
    tier = await opened(tmp_path / "small", capacity_bytes=16 * MIB)
    await tier.close()
    pack = tmp_path / "pack"
    assert (await asyncio.to_thread(run, "export", tmp_path / "large", "-o", pack))[0] == 0
    code, _, errors = await asyncio.to_thread(run, "import", tmp_path / "small", pack)
    assert code == 1
    assert "do not fit the segments" in errors


def test_an_interrupt_ends_an_import_whose_pipe_is_silent(pack: Path, other: Path) -> None:
    command = [sys.executable, "-m", "kvtier.factory", "import", str(other), "-"]
    begun = pack.read_bytes()[: 2 * CHUNK_BYTES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(begun)
        process.stdin.flush()
        while unread_bytes(process.stdin):  # it reads a chunk only once an interrupt is its own matter
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b"interrupted\n"


def unread_bytes(pipe: IO[bytes]) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
