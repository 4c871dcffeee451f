from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_rig import MIB, drive

from kvtier.factory import sharedmemory
from kvtier.factory.cli.planning.check import NOT_CHECKED
from kvtier.tiers.nvme.volume.mounts import mount_of
from kvtier.tiers.pinned.memory import Room as MemoryRoom

Run = Callable[..., tuple[int, str, str]]


def test_a_good_document_is_summed_up(run: Run, file: Path) -> None:
    file.write_text(file.read_text().replace("2TiB", "64MiB"))
    expected = (
        f"{file}: 3 tiers\n"
        "  tiers[0]  gpu\n"
        "  tiers[1]  pinned  64MiB, reuse\n"
        f"  tiers[2]  nvme    {file.parent}/store: 64MiB, reserve 1GiB\n"
    )
    status, output, _ = run("check", file, "--chunk-bytes", "1MiB")
    assert (status, output.startswith(expected)) == (0, True)
    mount = mount_of(file.parent)
    detail = output.removeprefix(expected)
    assert detail.strip().startswith(f"{mount.kind} on {mount.device} at {mount.point}: ")
    assert " free; the tier can take 64MiB\n" in detail
    assert len(detail.splitlines()) == 1
    status, output, _ = run("check", file)
    assert (status, output.endswith(f"{NOT_CHECKED}\n")) == (0, True)
    assert not (file.parent / "store").exists()


@pytest.fixture
def drives(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two drives, mounted."""
    with drive("ext4", tmp_path, 64 * MIB) as first, drive("xfs", tmp_path, 300 * MIB) as second:
        yield first.point, second.point


def document(file: Path, **nvme: Any) -> Path:
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}, {"type": "nvme", **nvme}]
    file.write_text(json.dumps({"version": 1, "tiers": tiers}))
    return file


@pytest.mark.root
def test_every_drive_is_shown_with_its_device_mount_and_room(
    run: Run, file: Path, drives: tuple[Path, Path]
) -> None:
    first, second = drives
    places = [str(first / "kvtier"), {"path": str(second / "kvtier"), "capacity": "200MiB"}]
    status, output, errors = run("check", document(file, path=places, capacity="16MiB", reserve=0))
    assert (status, errors) == (0, "")
    one, two = output.splitlines()[4:6]
    assert f"ext4 on {mount_of(first).device} at {first}: " in one
    assert "the tier can take 16MiB" in one
    assert f"xfs on {mount_of(second).device} at {second}: " in two
    assert "the tier can take 200MiB" in two


@pytest.mark.root
def test_a_capacity_above_the_drive_is_a_warning_with_what_it_takes(
    run: Run, file: Path, drives: tuple[Path, Path]
) -> None:
    status, output, errors = run("check", document(file, path=f"{drives[1]}/kvtier", capacity="1GiB"))
    assert status == 0
    assert errors.startswith("warning: tiers[2].capacity: 1GiB is more than the whole file system of ")
    assert errors.count("\n") == 1
    assert " (free space)\n" in output
    assert run("check", document(file, path=f"{drives[0]}/kvtier", capacity="2TiB"))[0] == 2


@pytest.mark.root
def test_a_mount_that_is_not_there_refuses(run: Run, file: Path, drives: tuple[Path, Path]) -> None:
    first, _ = drives
    nvme = {"capacity": "16MiB", "reserve": 0}
    good = document(file, path=f"{first}/kvtier", mount=str(first), **nvme)
    assert run("check", good)[0] == 0
    for mount, message in (
        (first.parent, f'nothing is mounted at "{first.parent}"'),
        (first / "gone", f'nothing is mounted at "{first}/gone"'),
        (drives[1], f'"{first}/kvtier" is not in "{drives[1]}"'),
    ):
        status, _, errors = run("check", document(file, path=f"{first}/kvtier", mount=str(mount), **nvme))
        assert (status, errors.startswith(f"tiers[2].mount: {message}")) == (2, True), errors
    places = [{"path": f"{first}/kvtier", "mount": f"{first}/gone", "capacity": "16MiB"}]
    status, _, errors = run("check", document(file, path=places))
    assert (status, errors.startswith("tiers[2].path[0].mount: nothing is mounted")) == (2, True)


def test_a_directory_in_memory_is_a_warning_that_names_it(run: Run, file: Path) -> None:
    path = "/dev/shm/kvtier-check"
    status, _, errors = run("check", document(file, path=path, capacity="16MiB", reserve=0))
    assert (status, f"warning: tiers[2].path: {path}: " in errors, "memory" in errors) == (0, True, True)
    assert not Path(path).exists()


@pytest.mark.parametrize("path", ["/dev/nvme99n1", "/dev/nvme99n1/kvtier"])
def test_a_device_in_place_of_a_directory_is_a_warning_that_names_it(run: Run, file: Path, path: str) -> None:
    status, _, errors = run("check", document(file, path=path, capacity="16MiB", reserve=0))
    expected = "/dev/nvme99n1 names a device, not a directory: mount it, and name a directory on it"
    assert (status, f"warning: tiers[2].path: {expected}\n" in errors) == (0, True)
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("path", "mount"),
    [("/mnt/nvme99/a/b", '"/mnt/nvme99"'), ("/srv/kvtier-check", '"/srv/kvtier-check"'), ("/x/y", "…")],
)
def test_the_mount_point_that_is_proposed_is_where_drives_are_mounted(
    run: Run, file: Path, path: str, mount: str
) -> None:
    if mount_of(Path("/")).kind == "overlay":
        pytest.skip("a container's root is told as such")
    _, _, errors = run("check", document(file, path=path, capacity="16MiB", reserve=0))
    assert f'add its mount point: "mount": {mount}\n' in errors


def test_a_tier_that_can_hold_nothing_is_refused_with_what_to_free(run: Run, file: Path) -> None:
    nvme = {"path": f"{file.parent}/store", "capacity": "64GiB", "reserve": "99.999%"}
    status, output, errors = run("check", document(file, **nvme))
    assert (status, output) == (2, "")
    assert re.fullmatch(
        r"tiers\[2\]\.reserve: \S+ must stay free on the file system of .*, which has \S+ free: the tier can "
        r'hold nothing\. Lower "reserve", or free \S+B\n',
        errors,
    )


def test_arena_and_index_are_too_much_for_shared_memory_together(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvme = {"path": f"{file.parent}/store", "capacity": "64MiB", "reserve": 0}
    checked = ("check", document(file, **nvme), "--chunk-bytes", "64KiB")
    room = MemoryRoom("/dev/shm", 65 * MIB, "enlarge it")
    monkeypatch.setattr(sharedmemory, "shared_memory_room", lambda _: room)
    status, _, errors = run(*checked)
    assert (status, errors.count("of /dev/shm together")) == (0, 1)
    assert "which has 65MiB free; enlarge it\n" in errors
    monkeypatch.setattr(sharedmemory, "shared_memory_room", lambda _: room._replace(left_bytes=2000 * MIB))
    assert "together (" not in run(*checked)[2]


def test_two_tiers_on_one_file_system_are_counted_once(run: Run, file: Path) -> None:
    tiers = json.loads(document(file, path=f"{file.parent}/a", capacity="60%", reserve=0).read_text())
    tiers["tiers"].append({**tiers["tiers"][2], "path": f"{file.parent}/b"})
    file.write_text(json.dumps(tiers))
    status, output, errors = run("check", "--json", file)
    assert status == 0
    assert "tiers[2].path and tiers[3].path are on one file system" in errors
    found = json.loads(output)
    for one in found["drives"]:  # others write to this machine's drive between two looks at it
        assert 0.4 * one["free_bytes"] < one["cap_bytes"] < 0.6 * one["free_bytes"]
        assert one["bound_by"] == "other tiers"
    assert any("on one file system" in warning for warning in found["warnings"])


def test_a_directory_on_the_root_file_system_is_a_warning(run: Run, file: Path) -> None:
    status, _, errors = run("check", document(file, path="/kvtier-check/x", capacity="16MiB", reserve=0))
    expected = "container" if mount_of(Path("/")).kind == "overlay" else "on the root file system"
    assert (status, expected in errors) == (0, True)
    assert not Path("/kvtier-check").exists()


def test_two_paths_on_one_drive_are_a_warning(run: Run, file: Path, tmp_path: Path) -> None:
    places = [f"{tmp_path}/a", f"{tmp_path}/b"]
    status, _, errors = run("check", document(file, path=places, capacity="16MiB", reserve=0))
    assert status == 0
    assert "tiers[2].path[0] and tiers[2].path[1] are on one file system" in errors
    assert "together they add neither room nor speed" in errors


def test_a_good_document_is_printed_as_this_machine_makes_it(run: Run, file: Path) -> None:
    status, output, errors = run("check", "--json", file)
    assert status == 0
    assert all(line.startswith("warning: tiers[2].") for line in errors.splitlines()), "beside the JSON"
    pinned = json.loads(output)["document"]["tiers"][1]
    assert pinned == {"type": "pinned", "capacity": 64 << 20, "policy": "reuse"}


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


def transfer_config(document: object, **changes: Any) -> str:
    extra = {"spec_module_path": "kvtier.factory.vllm", "spec_name": "CompositeOffloadingSpec"}
    return json.dumps(
        {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {**extra, "kvtier": document, **changes},
        }
    )


def test_what_vllm_gets_is_checked_whole(run: Run, file: Path) -> None:
    document = json.loads(file.read_text().replace("2TiB", "64MiB"))
    status, output, _ = run("check", "--kv-transfer-config", transfer_config(document))
    assert (status, output.splitlines()[0]) == (0, "the document: 3 tiers")
    status, output, _ = run("check", "--kv-transfer-config", transfer_config(str(file)))
    assert (status, output.splitlines()[0]) == (0, f"{file}: 3 tiers")
    status, _, errors = run("check", "--kv-transfer-config", transfer_config(document, weights_epoch=2))
    assert (status, errors.partition(":")[0]) == (2, "kv_connector_extra_config.weights_epoch")
    document["tiers"][1]["capacity"] = "lots"
    status, _, errors = run("check", "--kv-transfer-config", transfer_config(document))
    assert (status, errors.partition(":")[0]) == (2, "tiers[1].capacity")


def below_vllms_own(directory: Path, **changes: Any) -> str:
    """kvtier's NVMe tier below vLLM's CPU tier, as docs/vllm.md has it."""
    entry: dict[str, Any] = {
        "type": "KvtierNvmeTier",
        "module_path": "kvtier.factory.vllm",
        "path": str(directory),
    }
    entry |= {"capacity": "64MiB", "weights_epoch": 3, **changes}
    extra = {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": 1 << 20,
        "secondary_tiers": [{"type": "fs", "root_dir": "/mnt/other"}, entry],
    }
    config = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    return json.dumps({**config, "kv_connector_extra_config": extra})


def test_the_nvme_tier_below_vllms_own_is_checked_too(run: Run, tmp_path: Path) -> None:
    def checked(config: str) -> tuple[int, str, str]:
        return run("check", "--kv-transfer-config", config)

    status, output, errors = checked(below_vllms_own(tmp_path / "store"))
    assert (status, output.splitlines()[0]) == (0, "the document: 3 tiers"), errors
    place = "kv_connector_extra_config.secondary_tiers[1]"
    for changes, message in (
        ({"capacity": "lots"}, f"{place}.capacity: "),
        ({"capacitty": "64MiB"}, f"{place}.capacitty: unknown key"),
        ({"module_path": "kvtier"}, f'{place}.module_path: "kvtier" is not kvtier\'s'),
        ({"type": "KvtierTier"}, 'kv_connector_extra_config.spec_name: "TieringOffloadingSpec" is not'),
    ):
        status, _, errors = checked(below_vllms_own(tmp_path / "store", **changes))
        assert (status, errors[: len(message)]) == (2, message)
    config = json.loads(below_vllms_own(tmp_path / "store"))
    del config["kv_connector_extra_config"]["cpu_bytes_to_use"]
    status, _, errors = checked(json.dumps(config))
    assert (status, errors.partition(" ")[0]) == (2, "kv_connector_extra_config.cpu_bytes_to_use:")


def test_what_vllm_gets_may_come_from_standard_input(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", stdin(transfer_config(str(file), blocks_per_chnk=4)))
    status, _, errors = run("check", "--kv-transfer-config", "-")
    assert status == 2
    assert 'did you mean "blocks_per_chunk"?' in errors
    monkeypatch.setattr("sys.stdin", stdin("{'kv_connector'"))
    status, _, errors = run("check", "--kv-transfer-config", "-")
    assert (status, errors.startswith("standard input: line 1, column 2: ")) == (2, True)


def stdin(text: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text.encode()))


def test_the_document_may_come_from_standard_input_or_a_pipe(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file.read_text().replace("2TiB", "64MiB")
    monkeypatch.setattr("sys.stdin", stdin(text))
    status, output, _ = run("check", "-")
    assert (status, output.splitlines()[0]) == (0, "standard input: 3 tiers")
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    status, output, _ = run("check", f"/dev/fd/{reader}")
    os.close(reader)
    assert (status, output.splitlines()[0]) == (0, f"/dev/fd/{reader}: 3 tiers")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/null", "/dev/null: line 1, column 1: "),
        ("/dev/zero", "/dev/zero: larger than 1048576 bytes"),
        ("-", "standard input is closed"),
    ],
)
def test_what_is_no_document_is_one_message(
    run: Run, source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    status, output, errors = run("check", source)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(message)


def test_what_nothing_reads_is_a_warning(run: Run, file: Path) -> None:
    status, _, errors = run("check", "--kv-transfer-config", transfer_config(str(file), colour="red"))
    assert status == 0
    assert 'warning: nothing in kvtier reads "colour" in kv_connector_extra_config' in errors


def test_one_thing_is_checked_at_a_time(run: Run, file: Path) -> None:
    for arguments in ((), (file, "--kv-transfer-config", "{}")):
        status, _, errors = run("check", *arguments)
        assert status == 2
        assert "name a file, or pass --kv-transfer-config" in errors
