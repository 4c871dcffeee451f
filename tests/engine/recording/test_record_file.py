from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from kvtier.engine.recording.record_file import RecordFile

HEAD = "head"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_lines_go_behind_those_that_are_there_and_only_the_owner_reads_them(path: Path) -> None:
    path.write_text("before\n")
    path.chmod(0o644)
    file = RecordFile(path, lambda: HEAD)
    file.append("one")
    file.close()
    assert path.read_text() == "before\nhead\none\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_at_its_bound_it_becomes_the_older_of_two(path: Path) -> None:
    file = RecordFile(path, lambda: HEAD, file_bytes_max=100)
    for number in range(100):
        file.append(f"line {number}")
    file.close()
    older = path.with_name("trace.jsonl.1")
    assert sorted(os.listdir(path.parent)) == [path.name, older.name]
    kept = [*older.read_text().splitlines(), *path.read_text().splitlines()]
    assert kept.count(HEAD) == 2, "each file begins with a head"
    assert [line for line in kept if line != HEAD] == [f"line {n}" for n in range(100)][-len(kept) + 2 :]
    assert max(path.stat().st_size, older.stat().st_size) <= 100


def test_a_second_server_records_beside_the_first(path: Path) -> None:
    first, second = RecordFile(path, lambda: HEAD), RecordFile(path, lambda: HEAD)
    second.append("mine")
    first.append("its")
    first.close()
    second.close()
    assert path.read_text() == "head\nits\n"
    assert path.with_name(f"{path.name}.{os.getpid()}").read_text() == "head\nmine\n"


def test_a_link_a_pipe_and_a_folder_are_refused(path: Path) -> None:
    target = path.with_name("dear")
    target.write_text("to somebody")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        RecordFile(path, lambda: HEAD)
    assert target.read_text() == "to somebody"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError):
        RecordFile(path, lambda: HEAD)
    with pytest.raises(IsADirectoryError):
        RecordFile(path.parent, lambda: HEAD)


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ('head\n{"timestamp":1,"hash_', "head\n"),  # a full disk, or a power loss
        ('{"kvtier_tr', ""),
        ("a file of somebody's", "a file of somebody's\n"),
    ],
)
def test_a_line_that_was_cut_off_spoils_no_other(path: Path, before: str, kept: str) -> None:
    path.write_text(before)
    file = RecordFile(path, lambda: HEAD)
    file.append("one")
    file.close()
    assert path.read_text() == f"{kept}head\none\n"


def test_a_full_disk_leaves_no_part_of_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(path, lambda: HEAD)
    whole_write = os.write
    lengths = iter((3, 0))

    def write(fd: int, data: bytes) -> int:
        length = next(lengths)
        if not length:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole_write(fd, data[:length])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        file.append("one")
    file.close()
    assert path.read_text() == "head\n"


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_file_that_was_taken_away_is_begun_again(path: Path, is_renamed: bool) -> None:
    file = RecordFile(path, lambda: HEAD)
    file.append("one")
    if is_renamed:
        path.rename(path.with_name("yesterday"))
    else:
        path.unlink()
    file.append("two")
    file.close()
    assert path.read_text() == "head\ntwo\n"
