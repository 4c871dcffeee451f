from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from kvtier.factory.cli.check import NOT_CHECKED

Run = Callable[..., tuple[int, str, str]]


def test_a_good_document_is_summed_up(run: Run, file: Path) -> None:
    expected = (
        f"{file}: 3 tiers\n"
        "  tiers[0]  gpu\n"
        "  tiers[1]  pinned  64MiB, lru\n"
        f"  tiers[2]  nvme    {file.parent}/store: 2TiB, reserve 1GiB\n"
    )
    assert run("check", file, "--chunk-bytes", "1MiB") == (0, expected, "")
    assert run("check", file) == (0, f"{expected}{NOT_CHECKED}\n", "")
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
    assert " free" in errors


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
        "tiers[1].capacity: 67108864 bytes, too small for one chunk; it needs at least 67112960\n"  # pages
    )
    assert run("check", file, "--chunk-bytes", (64 << 20) + 1) == (2, "", expected)
    status, output, errors = run("check", file, "--chunk-bytes", "10%")
    assert (status, output) == (2, "")
    assert errors.startswith("--chunk-bytes: ")


def test_a_missing_file_is_status_two(run: Run, tmp_path: Path) -> None:
    expected = f"{tmp_path}/none.json: no such file or directory\n"
    assert run("check", tmp_path / "none.json") == (2, "", expected)
