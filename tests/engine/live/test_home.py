"""Where boards stand, and who may stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.engine.live.home import BOARD, Place, boards_in, home_of, is_held, is_safe


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return home_of(os.getuid(), tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.leave()


def killed(shared_memory: Path) -> None:
    """A process that takes a place and is killed."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from kvtier.engine.live.home import Place\n"
        "place = Place(Path(sys.argv[1])); place.write('board.json', b'{}')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(shared_memory)], check=False).returncode < 0


def test_the_last_to_leave_removes_the_home(tmp_path: Path, home: Path) -> None:
    first, second = Place(tmp_path), Place(tmp_path)
    assert [is_held(board) for board in boards_in(home)] == [True, True]
    first.leave()
    assert list(boards_in(home)) == [second.path]
    second.leave()
    assert not home.exists()


def test_nobody_else_may_look(place: Place, home: Path) -> None:
    assert home.stat().st_mode & 0o777 == 0o700
    assert place.path.stat().st_mode & 0o777 == 0o700


def test_the_board_of_a_killed_engine_goes_and_that_of_a_living_one_stays(
    tmp_path: Path, home: Path, place: Place
) -> None:
    killed(tmp_path)
    (dead,) = set(boards_in(home)) - {place.path}
    assert not is_held(dead)
    assert is_held(place.path)
    other = Place(tmp_path)
    assert set(boards_in(home)) == {place.path, other.path}
    other.leave()


def test_a_file_is_replaced_as_a_whole(place: Place) -> None:
    place.write(BOARD, b"first")
    with (place.path / BOARD).open("rb") as reader:
        place.write(BOARD, b"second, longer")
        assert reader.read() == b"first"
    assert (place.path / BOARD).read_bytes() == b"second, longer"
    assert os.listdir(place.path) == [BOARD]


def test_a_home_that_others_may_enter_or_a_link_is_not_used(tmp_path: Path, home: Path) -> None:
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    (home / "1-aa").mkdir()
    assert not is_safe(home)
    assert list(boards_in(home)) == []
    with pytest.raises(PermissionError):
        Place(tmp_path)
    target = tmp_path / "elsewhere"
    home.rename(target)
    target.chmod(0o700)
    home.symlink_to(target)
    assert not is_safe(home)
    with pytest.raises(PermissionError):
        Place(tmp_path)


def test_without_shared_memory_there_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="comes and goes"):
        Place(tmp_path / "absent")
