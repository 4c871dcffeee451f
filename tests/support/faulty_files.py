"""A file layer that knows what a power loss would take, and one whose device refuses."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvtier.tiers.base import Buffer
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, scratch
from kvtier.tiers.nvme.io.files import Files


class _Write(NamedTuple):
    """One write that no sync has covered: where it went and what was there before."""

    path: str
    offset: int
    before: bytes


class UnsyncedFiles(Files):
    """The real files, with a note of every write to a data file until its file is synced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unsynced: list[_Write] = []

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        size_bytes = sum(map(len, buffers))
        before = scratch(size_bytes)
        os.preadv(fd, [before], offset)
        written = super().pwritev(fd, buffers, offset)
        path = _path_of(fd)
        if not path.endswith(" (deleted)"):  # a probe's file, which no power loss leaves anything of
            with self._lock:
                self._unsynced.append(_Write(path, offset, bytes(before[:written])))
        return written

    def sync_data(self, fd: int) -> None:
        with self._lock:
            covered = list(self._unsynced)
        super().sync_data(fd)
        path = _path_of(fd)
        with self._lock:  # what was written during the sync is not covered by it
            self._unsynced = [w for w in self._unsynced if w.path != path or w not in covered]

    def lose_power(self, root: Path, target: Path, rng: random.Random) -> int:
        """Copy a store as a power loss now would leave it; returns how many blocks were lost.

        Each unsynced block is there or not, in any combination. The index lies in shared memory, of which
        nothing is left; a checkpoint is synced before it has its name.
        """
        with self._lock:
            unsynced = list(self._unsynced)
        shutil.copytree(root, target, copy_function=_copy_if_there)
        target.chmod(0o700)
        lost = 0
        for path, offset, before in reversed(unsynced):
            file = target / Path(path).relative_to(root)
            if file.exists():
                lost += _undo(file, offset, before, rng)
        return lost


class WatchedFiles(UnsyncedFiles):
    """Takes note of how many writes were not synced when a segment was about to be free.

    Headers do not count: some task may just make a segment ready, in which nothing lies yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsynced_then: list[int] = []

    def reached(self, step: str) -> None:
        if step == "emptied":
            with self._lock:
                of_chunks = [
                    write for write in self._unsynced if write.path.endswith(".seg") and write.offset
                ]
            self.unsynced_then.append(len(of_chunks))


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _copy_if_there(source: str, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return
    os.chmod(target, 0o600)


def _undo(file: Path, offset: int, before: bytes, rng: random.Random) -> int:
    lost = 0
    with file.open("r+b") as data:
        for start in range(0, len(before), BLOCK_BYTES):
            if rng.random() < 0.5:
                data.seek(offset + start)
                data.write(before[start : start + BLOCK_BYTES])
                lost += 1
    return lost


class AnotherBoot(Files):
    """The files after the machine was started again."""

    def boot_id(self) -> str:
        return "another boot"


class RefusingFiles(Files):
    """The real files, until the device refuses.

    Attributes:
        writes, reads, syncs: the errno that each of them fails with; 0 while it works.
        free: what the file system says is free; None for the truth.
    """

    writes = 0
    reads = 0
    syncs = 0
    free: int | None = None

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.writes:
            raise OSError(self.writes, os.strerror(self.writes))
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.reads:
            raise OSError(self.reads, os.strerror(self.reads))
        return super().preadv(fd, buffers, offset)

    def allocate(self, fd: int, size_bytes: int) -> None:
        if self.writes == errno.ENOSPC:
            raise OSError(self.writes, os.strerror(self.writes))
        super().allocate(fd, size_bytes)

    def sync_data(self, fd: int) -> None:
        if self.syncs:
            raise OSError(self.syncs, os.strerror(self.syncs))
        super().sync_data(fd)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free


class BadPlaces(Files):
    """The real files; in files whose names end with `name`, reads that touch one of the offsets fail."""

    def __init__(self, name: str, *offsets: int) -> None:
        self._name, self._offsets = name, offsets

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        end = offset + sum(map(len, buffers))
        if _path_of(fd).endswith(self._name) and any(offset <= bad < end for bad in self._offsets):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().preadv(fd, buffers, offset)
