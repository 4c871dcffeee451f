from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kvtier.factory.cli import app as cli
from kvtier.factory.schema import config_schema
from kvtier.tiers import TierUnavailable


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


class Run:
    """Runs the command line in this process: `run("check", file)` gives exit status, output and errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path | int) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["kvtier", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = self._capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "64MiB"},
        {"type": "nvme", "path": str(tmp_path / "store"), "capacity": "2TiB", "reserve": "1GiB"},
    ]
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps({"version": 1, "tiers": tiers}))
    return file


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert run("--version") == (0, f"kvtier {version('kvtier')}\n", "")


def test_the_schema_is_printed(run: Run) -> None:
    status, output, errors = run("schema")
    assert (status, errors) == (0, "")
    assert json.loads(output) == config_schema()


def test_a_good_document_is_summed_up(run: Run, file: Path) -> None:
    expected = (
        f"{file}: 3 tiers\n"
        "  tiers[0]  gpu\n"
        "  tiers[1]  pinned  64MiB, lru\n"
        f"  tiers[2]  nvme    {file.parent}/store: 2TiB, reserve 1GiB\n"
    )
    assert run("check", file, "--chunk-bytes", "1MiB") == (0, expected, "")
    assert run("check", file) == (0, f"{expected}{cli.NOT_CHECKED}\n", "")
    assert not (file.parent / "store").exists()


def test_a_good_document_is_printed_as_this_machine_makes_it(run: Run, file: Path) -> None:
    status, output, errors = run("check", "--json", file)
    assert (status, errors) == (0, "")
    assert json.loads(output)["tiers"][1] == {"type": "pinned", "capacity": 64 << 20, "policy": "lru"}


def test_a_wrong_document_is_one_message_and_status_two(run: Run, file: Path) -> None:
    file.write_text(file.read_text().replace("capacity", "capcity"))
    expected = 'tiers[1].capcity: unknown key; did you mean "capacity"?\n'
    assert run("check", file) == (2, "", expected)
    assert run("check", "--json", file) == (2, "", expected)


def test_a_document_that_does_not_fit_the_machine_is_status_two(run: Run, file: Path) -> None:
    (file.parent / "store").touch()
    expected = f'tiers[2].path: "{file.parent}/store" is not a directory\n'
    assert run("check", file) == (2, "", expected)


def test_a_document_for_a_larger_machine_is_good_with_a_warning(run: Run, file: Path) -> None:
    file.write_text(file.read_text().replace("64MiB", "64PiB"))
    status, output, errors = run("check", file)
    assert (status, "64PiB" in output) == (0, True)
    assert errors.startswith("warning: tiers[1].capacity: ")
    assert "to spare" in errors


def test_a_directory_that_a_start_refuses_is_status_two(run: Run, file: Path) -> None:
    store = file.parent / "store"
    store.mkdir(mode=0o700)
    (store / "photo.jpg").touch()
    expected = (
        f"tiers[2].path: {store} holds other files (photo.jpg); "
        "choose another path, which kvtier has for itself\n"
    )
    assert run("check", file) == (2, "", expected)


def test_chunks_are_as_long_as_they_are_said_to_be(run: Run, file: Path) -> None:
    expected = (
        "tiers[1].capacity: 67108864 bytes: not one chunk; the least that holds one is 67112960\n"  # pages
    )
    assert run("check", file, "--chunk-bytes", (64 << 20) + 1) == (2, "", expected)
    status, output, errors = run("check", file, "--chunk-bytes", "10%")
    assert (status, output) == (2, "")
    assert errors.startswith("--chunk-bytes: ")


def test_a_missing_file_is_status_two(run: Run, tmp_path: Path) -> None:
    expected = f"{tmp_path}/none.json: no such file or directory\n"
    assert run("check", tmp_path / "none.json") == (2, "", expected)


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


@pytest.mark.parametrize(
    ("command", "absent"),
    [("--help", "torch numpy lmdb"), ("schema", "torch numpy lmdb"), ("check", "torch numpy")],
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


def test_the_module_runs_as_the_command_line() -> None:
    command = [sys.executable, "-m", "kvtier.factory", "--version"]
    assert subprocess.check_output(command, text=True) == f"kvtier {version('kvtier')}\n"
