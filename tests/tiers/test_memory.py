from pathlib import Path

import psutil
import pytest

from kvtier.tiers.memory import memory_limit_bytes

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
