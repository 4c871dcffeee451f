from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.factory.sizing.measured import Measured, remember, remembered

FIRST = Measured(1e9, 2e9, 1 << 20, 1_795_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kvtier" / "bench.json"


def test_the_last_run_on_a_drive_is_remembered_for_every_path_on_it(tmp_path: Path) -> None:
    assert remembered(tmp_path) is None
    remember(tmp_path, FIRST)
    remember(tmp_path / "not" / "there", latest := Measured(3e9, 4e9, 1 << 20, 1_795_000_100))
    assert remembered(tmp_path) == latest
    assert remembered(Path("/dev/shm")) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"x": 1}'])
def test_a_damaged_file_is_no_memory_and_is_written_anew(tmp_path: Path, cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    assert remembered(tmp_path) is None
    remember(tmp_path, FIRST)
    assert remembered(tmp_path) == FIRST


def test_a_home_that_cannot_be_written_costs_nothing_but_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    remember(tmp_path, FIRST)
    assert remembered(tmp_path) is None
