from __future__ import annotations

import os
from pathlib import Path

import pytest
from host_tree import HostTree

from kvtier.factory.machine.guess import Volume, guess_drive, guess_pinned, volumes

GIB = 1 << 30


def test_the_arena_is_half_of_the_memory_where_shared_memory_has_it() -> None:
    guess = guess_pinned(100 * GIB + 12345, 200 * GIB)
    assert (guess.value, guess.why) == ("50GiB", "half of the memory that is available, 100GiB")
    small = guess_pinned(100 * GIB, 10 * GIB)
    assert (small.value, "/dev/shm" in small.why) == ("9GiB", True)
    assert guess_pinned(GIB, GIB).value == "512MiB"
    assert guess_pinned(0, 0).value == "1MiB"


def test_the_drive_is_the_one_with_most_free_space() -> None:
    first, second = (Volume(Path(f"/mnt/{i}"), f"/dev/{i}", 9, i) for i in (1, 2))
    assert guess_drive([first, second]) == second
    assert guess_drive([]) is None


def test_only_what_a_store_could_be_on_is_a_volume(
    tree: HostTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("good", "bind", "ro", "nfs", "root", "loop")}
    for folder in folders.values():
        folder.mkdir()
    rows = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        f"2 1 259:1 / {folders['good']} rw - xfs /dev/nvme0n1 rw",
        f"3 1 259:1 / {folders['bind']} rw - xfs /dev/nvme0n1 rw",
        f"4 1 259:2 / {folders['ro']} ro - xfs /dev/nvme1n1 rw",
        f"5 1 0:40 / {folders['nfs']} rw - nfs4 host:/x rw",
        f"6 1 8:1 /x {folders['root']} rw - ext4 /dev/sda1 rw",
        "7 1 8:2 / /boot rw - ext4 /dev/sda2 rw",
        "8 1 8:3 / /nowhere/at/all rw - ext4 /dev/sda3 rw",
    ]
    tree.write("proc/self/mountinfo", "\n".join(rows))
    found = volumes(tree.host)
    assert [(volume.point, volume.device) for volume in found] == [(folders["good"], "/dev/nvme0n1")]
    assert found[0].free_bytes > 0
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert volumes(tree.host) == []
