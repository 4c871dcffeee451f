"""Opening and leaving a store: what is marked, kept and dropped, and by whom."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import damage
import pytest
from faulty_files import AnotherBoot
from nvme_rig import IDENTITY, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import IdentityMismatch, TierUnavailable
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.mark import read_mark
from kvtier.tiers.nvme.store.namespaces import Identity, NamespaceFile, Namespaces

OTHERS = [Identity({"model": "m", "weights_epoch": str(epoch)}) for epoch in range(5)]


class StoppingFiles(Files):
    """The real files; once armed, whoever reaches the step waits there until `go` is set."""

    def __init__(self, step: str) -> None:
        self._step = step
        self.armed = False
        self.waits, self.go = threading.Event(), threading.Event()

    def reached(self, step: str) -> None:
        if self.armed and step == self._step:
            self.armed = False
            self.waits.set()
            self.go.wait()


class FullFiles(Files):
    """The real files, on a drive without room."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_small(self, path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def left_with(path: Path, identity: Identity, chunks: int) -> None:
    """Open the store for the identity, store so many chunks, and leave."""
    tier = await opened(path, identity=identity)
    await stored(tier, keys_of(0, chunks))
    await tier.close()


def namespace_files(path: Path) -> set[bytes]:
    return {bytes.fromhex(file.stem) for file in (path / "namespaces").iterdir()}


def is_marked(path: Path) -> bool:
    mark = read_mark(path)
    return mark is not None and not mark.closed


async def test_a_store_on_a_drive_that_is_full_opens_and_serves(path: Path) -> None:
    await left_with(path, IDENTITY, 8)
    tier = await opened(path, files=FullFiles())
    assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
    await tier.close()


async def test_the_store_is_marked_as_in_use_before_the_index_is_changed(path: Path) -> None:
    marked = []

    class Watching(Files):
        def reached(self, step: str) -> None:
            if step == "index opened":
                marked.append(is_marked(path))

    for _ in range(2):
        await (await opened(path, files=Watching())).close()
    damage.lose_index(path)
    await (await opened(path, files=Watching())).close()
    assert marked == [True, True, True]


async def test_a_start_that_is_refused_leaves_no_mark(path: Path) -> None:
    await left_with(path, IDENTITY, 1)
    another = NamespaceFile(Identity({"model": "another"}), 1, 0)
    Namespaces(Files(), path / "namespaces").write(IDENTITY.digest, another)
    with pytest.raises(IdentityMismatch):
        await opened(path)
    assert not is_marked(path)


async def test_an_open_that_is_cancelled_leaves_the_store(path: Path) -> None:
    files = StoppingFiles("opened")
    files.armed = True
    opening = asyncio.create_task(opened(path, files=files))
    await asyncio.to_thread(files.waits.wait)
    opening.cancel()
    await asyncio.sleep(0)  # the cancellation arrives while the store is being opened
    files.go.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not is_marked(path)
    tier = await opened(path)
    assert tier._store.directory.alone
    await tier.close()


async def test_of_two_who_invalidate_at_once_the_later_epoch_outlives_a_power_loss(path: Path) -> None:
    files = StoppingFiles("epoch raised")
    slow, quick = await opened(path, files=files), await opened(path)
    files.armed = True
    invalidating = asyncio.create_task(slow.invalidate())
    await asyncio.to_thread(files.waits.wait)
    await stored(quick, keys_of(0, 8))
    await quick.flush()
    await quick.invalidate()
    files.go.set()
    await invalidating
    left = path.with_name("left")
    shutil.copytree(path, left)
    for tier in (slow, quick):
        await tier.close()
    after = await opened(left, files=AnotherBoot())
    assert list(after.lookup(keys_of(0, 8))) == [False] * 8
    await after.close()


async def test_a_lost_namespace_file_does_not_bring_an_older_epoch_back(path: Path) -> None:
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    await tier.invalidate()
    await tier.close()
    (file,) = (path / "namespaces").iterdir()
    file.write_text("{")
    await (await opened(path)).close()
    damage.lose_index(path)
    after = await opened(path)
    assert list(after.lookup(keys_of(0, 8))) == [False] * 8
    await after.close()


async def test_namespaces_without_chunks_are_dropped_once_nobody_else_has_the_store_open(path: Path) -> None:
    first, *others, last = OTHERS
    await left_with(path, IDENTITY, 4)
    server = await opened(path, identity=first)
    for other in others:
        await (await opened(path, identity=other)).close()
    assert namespace_files(path) == {one.digest for one in (IDENTITY, first, *others)}
    await server.close()
    tier = await opened(path, identity=last)
    assert namespace_files(path) == {IDENTITY.digest, last.digest}
    with tier._index.read() as txn:
        assert txn.namespaces().keys() == {IDENTITY.digest, last.digest}
    await tier.close()
    await holds(path, 4)


async def test_a_namespace_that_was_invalidated_is_kept_for_what_a_rebuild_must_not_bring_back(
    path: Path,
) -> None:
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    await tier.invalidate()
    await tier.close()
    await (await opened(path, identity=OTHERS[0])).close()
    damage.lose_index(path)
    await holds(path, 0)


async def test_a_namespace_that_was_dropped_starts_anew(path: Path) -> None:
    await left_with(path, IDENTITY, 0)
    await left_with(path, OTHERS[0], 4)
    await left_with(path, IDENTITY, 2)
    damage.lose_index(path)
    await holds(path, 2)


async def holds(path: Path, chunks: int) -> None:
    tier = await opened(path)
    assert await right(tier, keys_of(0, 8)) == keys_of(0, chunks)
    await tier.close()


@pytest.mark.parametrize("chunk_bytes", [1, 64, 511])
async def test_chunks_too_small_for_any_cap_are_refused(tmp_path: Path, chunk_bytes: int) -> None:
    with pytest.raises(TierUnavailable, match=f"chunks of {chunk_bytes} bytes are too small.*512"):
        await opened(tmp_path / "new", chunk_bytes=chunk_bytes)
    assert not (tmp_path / "new").exists()
    tier = await opened(tmp_path / "new", chunk_bytes=512)
    await stored(tier, keys_of(0, 8), 512)
    await tier.close()
