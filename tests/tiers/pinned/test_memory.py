import os
from pathlib import Path

import psutil
import pytest

from kvtier.tiers.pinned import memory
from kvtier.tiers.pinned.memory import (
    HEADROOM_BYTES,
    memory_left_bytes,
    memory_limit_bytes,
    memory_room,
    shared_memory_room,
    untouched_bytes,
)

TOTAL_BYTES = psutil.virtual_memory().total


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "memory" / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    return tmp_path


def own(root: Path, text: str) -> Path:
    file = root / "own"
    file.write_text(text)
    return file


def test_without_control_groups_it_is_the_physical_memory(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path, tmp_path / "none") == TOTAL_BYTES


def test_the_smallest_limit_of_a_group_and_its_parents_counts(root: Path) -> None:
    (root / "a" / "memory.max").write_text("4096\n")
    (root / "a" / "b" / "memory.max").write_text("max\n")
    assert memory_limit_bytes(root, own(root, "0::/a/b\n")) == 4096


def test_a_group_seen_from_inside_a_container_is_the_root(root: Path) -> None:
    (root / "memory.max").write_text("8192\n")
    assert memory_limit_bytes(root, own(root, "0::/outer/name\n")) == 8192


def test_the_first_version_of_control_groups_counts_too(root: Path) -> None:
    (root / "memory" / "a" / "memory.limit_in_bytes").write_text("12288\n")
    assert memory_limit_bytes(root, own(root, "5:cpu:/\n4:memory:/a/b\n")) == 12288


def test_a_limit_above_the_physical_memory_does_not_count(root: Path) -> None:
    (root / "memory.max").write_text(f"{TOTAL_BYTES * 2}")
    assert memory_limit_bytes(root, own(root, "0::/\n")) == TOTAL_BYTES


def test_what_is_left_is_the_least_that_any_group_around_has_left(root: Path) -> None:
    (root / "a" / "memory.max").write_text("9000")
    (root / "a" / "memory.current").write_text("5000")
    (root / "a" / "b" / "memory.max").write_text("7000")
    (root / "a" / "b" / "memory.current").write_text("100")
    assert memory_left_bytes(root, own(root, "0::/a/b\n")) == 4000


def test_cached_files_give_way(root: Path) -> None:
    (root / "a" / "memory.max").write_text("9000")
    (root / "a" / "memory.current").write_text("8000")
    (root / "a" / "memory.stat").write_text("anon 1000\ninactive_file 3000\nactive_file 2000\n")
    assert memory_left_bytes(root, own(root, "0::/a\n")) == 4000


def test_the_first_version_of_control_groups_has_its_own_names(root: Path) -> None:
    (root / "memory" / "a" / "memory.limit_in_bytes").write_text("9000")
    (root / "memory" / "a" / "memory.usage_in_bytes").write_text("8000")
    (root / "memory" / "a" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500\n")
    assert memory_left_bytes(root, own(root, "4:memory:/a\n")) == 1500


def test_a_group_over_its_limit_has_nothing_left(root: Path) -> None:
    (root / "a" / "memory.max").write_text("1000")
    (root / "a" / "memory.current").write_text("2000")
    assert memory_left_bytes(root, own(root, "0::/a\n")) == 0


def test_what_open_files_have_yet_to_take_is_spoken_for_even_without_a_name() -> None:
    prefix = f"/dev/shm/test-{os.getpid()}-"
    path = Path(prefix + "x")
    with path.open("wb", buffering=0) as file:
        file.truncate(100 << 20)
        assert untouched_bytes(prefix) == 100 << 20
        file.write(b"x" * (40 << 20))
        assert untouched_bytes(prefix) == 60 << 20
        path.unlink()
        assert untouched_bytes(prefix) == 60 << 20
    assert untouched_bytes(prefix) == 0


def test_room_leaves_something_for_the_server_and_for_what_others_were_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_left_bytes", lambda: HEADROOM_BYTES + 5000)
    monkeypatch.setattr(memory, "untouched_bytes", lambda prefix: 2000)
    assert memory_room().left_bytes == 3000
    status = os.statvfs(tmp_path)
    assert 0 < shared_memory_room(tmp_path).left_bytes < status.f_blocks * status.f_frsize
