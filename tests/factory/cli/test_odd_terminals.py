"""Whatever a command prints to: no traceback, one line of error at most, and a status of the table."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from nvme_rig import keys_of, stored
from store_cli import with_tier

from kvtier.tiers.nvme.store.namespaces import Identity

pytestmark = pytest.mark.slow

PIPE = subprocess.PIPE
LABEL = "größe/模型"


@pytest.fixture
def commands(path: Path, file: Path) -> list[list[str]]:
    with_tier(path, lambda tier: stored(tier, keys_of(0, 1)), identity=Identity({"model": LABEL}))
    return [["--help"], ["check", str(file)], ["ls", str(path)], ["fsck", str(path)]]


def started(
    command: list[str], shell: str = '"$@"', stdout: IO[Any] | int = PIPE, **environment: str
) -> subprocess.Popen[bytes]:
    """A command, started by a line of the shell."""
    words = ["bash", "-c", shell, "bash", sys.executable, "-m", "kvtier.factory", *command]
    return subprocess.Popen(words, stdout=stdout, stderr=PIPE, env={**os.environ, **environment})


def ended(running: subprocess.Popen[bytes]) -> tuple[int, bytes, list[str]]:
    """Status, output, and what was said beside warnings."""
    output, errors = running.communicate()
    said = [line for line in errors.decode().splitlines() if not line.startswith("warning: ")]
    return running.returncode, output or b"", said


def test_a_full_device_is_one_line(commands: list[list[str]]) -> None:
    with open("/dev/full", "w") as full:
        running = [started(command, stdout=full) for command in commands]
    assert {(status, *said) for status, _, said in map(ended, running)} == {(2, "No space left on device")}


def test_a_reader_that_left_is_no_error(commands: list[list[str]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    running = [started(command, stdout=writer) for command in commands]
    os.close(writer)
    assert {(status, *said) for status, _, said in map(ended, running)} == {(141,)}


def test_a_closed_output_is_no_error(commands: list[list[str]]) -> None:
    running = [started(command, '"$@" >&- <&-') for command in commands]
    assert {(status, *said) for status, _, said in map(ended, running)} == {(0,)}


def test_an_encoding_that_lacks_a_character_shows_its_escape(commands: list[list[str]]) -> None:
    running = [started(command, PYTHONIOENCODING="latin-1:strict") for command in commands]
    found = list(map(ended, running))
    assert {(status, *said) for status, _, said in found} == {(0,)}
    assert "größe/\\u6a21\\u578b".encode("latin-1") in b"".join(output for _, output, _ in found)


def test_a_narrow_or_dumb_terminal_shows_every_row(path: Path) -> None:
    command = ["ls", str(path)]
    terminals = [("dumb", "80"), ("xterm", "0"), ("xterm", "1"), ("", "10")]
    ends = [(pty.openpty(), *terminal) for terminal in terminals]
    running = [started(command, stdout=end[1], TERM=term, COLUMNS=wide) for end, term, wide in ends]
    assert {(status, *said) for status, _, said in map(ended, running)} == {(0,)}
    for (ours, theirs), _, _ in ends:
        os.close(theirs)
        shown = os.read(ours, 65_536)
        os.close(ours)
        assert (b"\x1b" in shown, len(shown.splitlines())) == (False, 2)
