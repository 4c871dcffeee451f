from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier.factory.machine import examination
from kvtier.factory.machine.memory import SharedMemory

Run = Callable[..., tuple[int, str, str]]

CHECKS = {
    *("file-system", "mount", "directory", "direct-io", "fallocate", "locks", "cgroup-io", "pid-namespace"),
    *("memory", "shared-memory", "memlock", "cgroup-memory", "descriptors", "hash-seed"),
}


@pytest.fixture(autouse=True)
def _a_machine_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = SharedMemory(1 << 40, 1 << 40)
    monkeypatch.setattr(examination, "_shared_memory", lambda: roomy)


def test_a_directory_is_looked_at_with_its_machine(run: Run, path: Path) -> None:
    status, output, errors = run("doctor", path)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(path)
    assert "this machine" in lines
    shown = {line.split()[1] for line in lines if line.split()[0] in ("ok", "warning", "unknown")}
    assert shown >= CHECKS


def test_json_has_every_check_with_its_place(run: Run, path: Path) -> None:
    status, output, _ = run("doctor", path, "--json")
    document = json.loads(output)
    assert (status, document["command"], document["version"]) == (0, "doctor", 1)
    by_name = {one["check"]: one for one in document["checks"]}
    assert by_name.keys() >= CHECKS
    assert by_name["locks"] == {
        "place": str(path),
        "check": "locks",
        "state": "ok",
        "text": "exclude other processes",
        "fix": "",
    }
    assert by_name["descriptors"]["place"] is None


def test_a_machine_alone_can_be_looked_at(run: Run) -> None:
    status, output, _ = run("doctor")
    assert status == 0
    assert "file-system" not in output
    assert "shared-memory" in output


def test_a_document_is_looked_at_with_all_its_drives(run: Run, file: Path, tmp_path: Path) -> None:
    document = json.loads(file.read_text())
    document["tiers"][2] |= {"path": [str(tmp_path / "a"), str(tmp_path / "b")], "capacity": "1GiB"}
    file.write_text(json.dumps(document))
    status, output, _ = run("doctor", file, "--json")
    assert status == 0
    places = {one["place"] for one in json.loads(output)["checks"]}
    assert places == {str(tmp_path / "a"), str(tmp_path / "b"), None}
    assert not (tmp_path / "a").exists()


def test_a_fault_is_status_one_with_its_fix(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SharedMemory(1 << 20, 1 << 20)
    monkeypatch.setattr(examination, "_shared_memory", lambda: small)
    status, output, _ = run("doctor", file)
    assert status == 1
    lines = output.splitlines()
    (number,) = [i for i, line in enumerate(lines) if line.startswith("  fault ")]
    assert "shared-memory  /dev/shm has 1MiB" in lines[number]
    assert lines[number + 1].strip().startswith("fix: enlarge it")


def test_warnings_count_where_they_are_told_to(run: Run, tmp_path: Path) -> None:
    memory = Path("/dev/shm/kvtier-doctor")
    assert run("doctor", memory)[0] == 0
    status, output, _ = run("doctor", memory, "--strict")
    assert (status, "  warning  file-system" in output) == (1, True)
    assert not memory.exists()


def test_a_document_that_is_wrong_is_status_two(run: Run, file: Path) -> None:
    file.write_text(file.read_text().replace("capacity", "capcity"))
    status, output, errors = run("doctor", file)
    assert (status, output, errors.startswith("tiers[1].capcity: ")) == (2, "", True)


def test_a_document_that_is_missing_is_not_taken_for_a_directory(run: Run, tmp_path: Path) -> None:
    mistyped = tmp_path / "absent.json"
    assert run("doctor", mistyped) == (2, "", f"{mistyped}: no such file or directory\n")


def test_a_document_may_come_from_standard_input(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    _, output, errors = run("doctor", "-")
    assert (output.splitlines()[0], errors) == (str(tmp_path / "store"), "")
