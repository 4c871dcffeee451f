"""`kvtier top`, over boards of this process and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import board, tier
from rich.console import Console

from kvtier.engine.live import reader
from kvtier.engine.live.board import Board, encode
from kvtier.engine.live.home import BOARD, Place
from kvtier.factory.cli.watching import top
from kvtier.factory.cli.watching.looks import Looks
from kvtier.factory.cli.watching.top_screen import screen

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Board]]:
    """What the next looks find; the last one stays."""
    looks: list[list[Board]] = [[]]
    monkeypatch.setattr(reader, "boards_of", lambda path: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(top, "ONCE_MIN_S", 0.0)
    return looks


TWO = [
    [board(100.0, pinned=tier(), nvme=tier())],
    [board(101.0, pinned=tier(hits=1), nvme=tier(hits=3, misses=1, loaded=2048, corrupt_chunks=1))],
]


def test_in_a_pipe_each_line_is_a_tier_of_an_engine(run: Run, seen: list[list[Board]]) -> None:
    seen[:] = TWO
    status, output, errors = run("top", "--interval", "0.1")
    assert (status, errors) == (0, "")
    pinned, nvme = (line.split("\t") for line in output.splitlines())
    assert pinned[:4] == ["7", "org/[bold]m", "pinned", "1"]
    assert nvme[:6] == ["7", "org/[bold]m", "nvme", "3", "60.0", "60.0"]
    assert "\x1b" not in output


def test_as_json_the_last_look_is_printed(run: Run, seen: list[list[Board]]) -> None:
    seen[:] = TWO
    status, output, _ = run("top", "--json", "--interval", "0.1")
    (engine,) = json.loads(output)["engines"]
    assert status == 0
    assert engine["tiers"][1]["load_bytes_per_s"] == 2048.0
    assert engine["saved_tokens"] == 64


def test_where_nobody_tells_anything_the_answer_is_no_and_says_why(
    run: Run, seen: list[list[Board]], path: Path
) -> None:
    status, output, errors = run("top", path)
    assert (status, output) == (1, "")
    assert f"no engine on {path} tells anything" in errors
    assert "another container" in errors


def test_a_path_that_is_no_store_is_refused(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("top", tmp_path)
    assert status == 2
    assert "is not a kvtier store" in errors


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_whatever_the_width_nothing_is_wider_and_every_number_is_there(columns: int) -> None:
    looks = Looks()
    looks.add(TWO[0], 100.0)
    console = Console(width=columns, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(screen(looks.add(TWO[1], 101.0), columns))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    for shown in (
        "org/[bold]m",
        "60.0",
        "2KiB",
        "500B",
        "breaker open",
        "corrupt, capped by free space",
        "64 ",
    ):
        assert shown in text, shown


@pytest.fixture
def live() -> Iterator[Place]:
    """A board of this process, where other processes look."""
    place = Place()
    place.write(BOARD, encode(board(nvme=tier(hits=1))))
    yield place
    place.leave()


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_on_a_terminal_it_runs_until_q_or_an_interrupt(live: Place, end: bytes) -> None:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "kvtier.factory", "top"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"org/[bold]m" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, end)
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:
        pass  # the other side is closed
    os.close(ours)
    assert running.wait(30) == (0 if end == b"q" else 130)
    assert b"\x1b[?1049h" in shown, "the alternate screen"
    assert shown.rindex(b"\x1b[?1049l") > shown.rindex(b"\x1b[?1049h"), "and back"
