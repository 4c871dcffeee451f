from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from kvtier.factory.cli import app as cli
from kvtier.factory.cli.exits import EXITS
from kvtier.tiers import TierUnavailable

Run = Callable[..., tuple[int, str, str]]


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert run("--version") == (0, f"kvtier {version('kvtier-core')}\n", "")


def test_an_unknown_command_is_status_two(run: Run) -> None:
    status, output, errors = run("chekc")
    assert (status, output) == (2, "")
    assert "chekc" in errors


def test_a_tier_that_fails_is_one_message_and_status_one(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TierUnavailable("nvme", "the drive is gone")

    monkeypatch.setattr("kvtier.factory.config.resolve_config", fail)
    assert run("check", file) == (1, "", "nvme: the drive is gone\n")


def test_a_message_never_moves_the_cursor(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TierUnavailable("nvme", "\x1b]0;title\x07 \x9b2J\nthe next line")

    monkeypatch.setattr("kvtier.factory.config.resolve_config", fail)
    assert run("check", file) == (1, "", "nvme: \\x1b]0;title\\x07 \\x9b2J\nthe next line\n")


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("--help", "torch numpy lmdb pydantic asyncio rich email importlib.metadata"),
        ("schema", "torch numpy lmdb"),
        ("check", "torch numpy"),
    ],
)
def test_what_takes_long_to_import_is_left_alone(file: Path, command: str, absent: str) -> None:
    code = (
        "import sys; from kvtier.factory.cli import app as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end\n"
        f"assert not set({absent.split()}) & set(sys.modules)"
    )
    arguments = [command, str(file)] if command == "check" else [command]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_the_module_has_the_name_of_the_program() -> None:
    command = [sys.executable, "-m", "kvtier.factory", "du", "--help"]
    assert subprocess.check_output(command, text=True).splitlines()[0].startswith("Usage: kvtier du ")


def test_the_module_runs_as_the_command_line() -> None:
    command = [sys.executable, "-m", "kvtier.factory", "--version"]
    assert subprocess.check_output(command, text=True) == f"kvtier {version('kvtier-core')}\n"


SUMMARY_CHARS_MAX = 60  # longer ones are cut on a terminal of 80 columns


def test_the_help_shows_every_command_with_its_whole_summary(run: Run) -> None:
    status, output, errors = run("--help")
    assert (status, errors) == (0, "")
    listed, _, exits = output.partition("Commands:\n")[2].partition("\n\n")
    lines = [line.split(maxsplit=1) for line in listed.splitlines()]
    said = " ".join(exits.split())
    assert said == f"Exit status: {'; '.join(f'{code} {meaning}' for code, meaning in EXITS.items())}."
    assert [name for name, _ in lines] == [cli.name_of(command) for command in cli.COMMANDS]
    for name, summary in lines:
        assert len(summary) <= SUMMARY_CHARS_MAX, name
        assert summary.endswith("."), f"the summary of {name} is cut"


@pytest.mark.parametrize("command", [[], *([cli.name_of(command)] for command in cli.COMMANDS)])
def test_the_short_option_for_help_works_everywhere(run: Run, command: list[str]) -> None:
    assert run(*command, "-h") == run(*command, "--help")
