from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier.factory.sizing.measured import Measured, remember

Run = Callable[..., tuple[int, str, str]]

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
GPU = ("--gpu-memory", "80GiB", "--weights", "15GiB")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def document(file: Path, pinned: Any, nvme: Any, path: Path) -> Path:
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": pinned},
        {"type": "nvme", "path": str(path), "capacity": nvme, "reserve": 0},
    ]
    file.write_text(json.dumps({"version": 1, "tiers": tiers}))
    return file


def explained(run: Run, *arguments: object) -> Any:
    status, output, errors = run("explain", *arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output)


def test_a_document_is_explained_in_tokens_and_seconds(run: Run, file: Path, model: Path) -> None:
    document(file, "64GiB", "2TiB", file.parent / "store")
    status, output, errors = run("explain", file, "--model", model, *GPU)
    assert (status, errors) == (0, "")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert lines[5].startswith("nvme 2TiB: 16,699,440 tokens, 2,087 prompts of 8,000; here ")
    assert lines[5].endswith(" tokens")
    assert [*lines[:5], *lines[6:7]] == [
        "llama (32 layers, 8 KV heads of 128, bfloat16): 128KiB a token",
        "block 2MiB: 16 tokens",
        "chunk 2MiB: blocks_per_chunk 1, 16 tokens",
        "GPU 90% of 80GiB less 15GiB of weights: at most 466,944 tokens",
        "pinned 64GiB: 524,288 tokens, 66 prompts of 8,000",
        "load 32,768 4GiB: pinned 0.21 s (20GB/s, assumed); nvme 1.4 s (3GB/s, assumed)",
    ]
    assert not (file.parent / "store").exists()


def test_pinned_that_is_no_larger_than_the_gpu_is_a_warning(run: Run, file: Path, model: Path) -> None:
    document(file, "32GiB", "64MiB", file.parent / "store")
    (warning,) = explained(run, file, "--model", model, *GPU)["warnings"]
    assert warning.startswith("pinned holds 262,144 tokens, not more than the GPU itself (466,944)")
    assert warning.endswith("twice the GPU's are 114GiB")
    assert explained(run, file, "--model", model)["warnings"] == []


def test_what_this_machine_has_room_for_is_told_beside_what_is_wanted(
    run: Run, file: Path, model: Path
) -> None:
    document(file, "1GiB", "256MiB", file.parent / "store")
    nvme = explained(run, file, "--model", model)["tiers"][1]
    assert (nvme["here"], nvme["bound_by"]) == (nvme["wanted"], "capacity")
    document(file, "1GiB", "64TiB", file.parent / "store")
    found = explained(run, file, "--model", model)
    nvme = found["tiers"][1]
    assert (nvme["bound_by"], nvme["here"]["tokens"] < nvme["wanted"]["tokens"]) == ("free space", True)
    assert any("more than the whole file system" in text for text in found["missing"])


def test_a_directory_of_somebody_else_is_missing_and_said_once(run: Run, file: Path, model: Path) -> None:
    store = file.parent / "store"
    store.mkdir(mode=0o700)
    (store / "photo.jpg").touch()
    document(file, "1GiB", "256MiB", store)
    missing = explained(run, file, "--model", model)["missing"]
    assert [text for text in missing if "photo.jpg" in text] == missing[-1:]


def test_a_tier_that_holds_nothing_is_a_warning(run: Run, file: Path, model: Path) -> None:
    document(file, "1GiB", "2MiB", file.parent / "store")
    found = explained(run, file, "--model", model)
    assert found["tiers"][1]["wanted"]["tokens"] == 0
    assert found["warnings"] == ["nvme holds nothing: 2MiB is too small for chunks of 2MiB"]
    assert len(set(found["missing"])) == len(found["missing"])


def test_what_this_machine_lacks_is_listed_and_stops_nothing(run: Run, file: Path, model: Path) -> None:
    (file.parent / "store").touch()
    document(file, "64PiB", "2TiB", file.parent / "store")
    found = explained(run, file, "--model", model)
    assert [text.partition(":")[0] for text in found["missing"]] == ["tiers[1].capacity", "tiers[2].path"]
    assert found["tiers"][1]["wanted"]["capacity_bytes"] == 2 << 40
    document(file, "1GiB", "80%", file.parent / "store")
    assert explained(run, file, "--model", model)["tiers"][1]["wanted"] is None
    assert "unknown: this machine cannot tell" in run("explain", file, "--model", model)[1]


def test_chunks_that_are_too_small_for_a_drive_are_a_warning(run: Run, file: Path, model: Path) -> None:
    small = {**LLAMA, "num_hidden_layers": 2, "num_key_value_heads": 1}
    (model / "config.json").write_text(json.dumps(small))
    document(file, "64MiB", "256MiB", file.parent / "store")
    found = explained(run, file, "--model", model)
    assert (found["blocks_per_chunk"], found["chunk_bytes"], found["warnings"]) == (16, 256 << 10, [])
    found = explained(run, file, "--model", model, "--blocks-per-chunk", 2)
    assert found["warnings"] == [
        "chunks of 32KiB leave much of a drive's speed unused; blocks_per_chunk 16 makes them 256KiB"
    ]


def test_the_speed_of_a_drive_is_what_is_given_or_was_measured(run: Run, file: Path, model: Path) -> None:
    document(file, "1GiB", "1GiB", file.parent / "store")
    remember(file.parent, Measured(1e9, 8e9, 1 << 20, 1_795_000_000))
    measured = explained(run, file, "--model", model)["tiers"][1]
    assert measured["load_bytes_per_s"] == 8e9
    assert measured["load_origin"].startswith("measured by kvtier bench, 2026-11-1")
    given = explained(run, file, "--model", model, "--load", "4GiB", "--prefix-tokens", 32768)["tiers"][1]
    assert (given["load_origin"], given["load_s"]) == ("given", 1.0)


def test_ranks_share_the_pinned_links_and_not_the_drive(run: Run, file: Path, model: Path) -> None:
    document(file, "1GiB", "1GiB", file.parent / "store")
    one = explained(run, file, "--model", model)
    two = explained(run, file, "--model", model, "--tp", 2, *GPU)
    assert two["chunk_bytes"] == one["chunk_bytes"]
    assert two["tiers"][0]["load_s"] * 2 == one["tiers"][0]["load_s"]
    assert two["tiers"][1]["load_s"] == one["tiers"][1]["load_s"]
    assert two["gpu_tokens"] == (80 * 0.9 - 7.5) * (1 << 30) // (64 << 10)


def test_the_model_may_come_from_standard_input(
    run: Run, file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (model / "config.json").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert explained(run, file, "--model", "-")["token_bytes"] == 128 << 10


def test_the_document_may_come_from_standard_input_and_then_the_model_may_not(
    run: Run, file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert explained(run, "-", "--model", model)["token_bytes"] == 128 << 10
    message = "--model: standard input has the document; name a file for one of them\n"
    assert run("explain", "-", "--model", "-") == (2, "", message)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("[]", (), "--model: it should be an object"),
        ("{", (), "config.json: line 1"),
        ("{}", (), '--model: there is no "model_type" in it'),
        ('{"model_type": "llama", "mamba_d_state": 16}', (), "--model: llama: it has recurrent layers"),
        (json.dumps(LLAMA), ("--tp", 3), "--tensor-parallel-size: llama has 8 KV heads"),
        (json.dumps(LLAMA), ("--gpu-memory", "lots"), "--gpu-memory: "),
        (json.dumps(LLAMA), ("--kv-cache-dtype", "fp4"), "--kv-cache-dtype: "),
    ],
)
def test_what_cannot_be_explained_is_one_message_and_status_two(
    run: Run, file: Path, model: Path, text: str, options: tuple[object, ...], message: str
) -> None:
    (model / "config.json").write_text(text)
    status, output, errors = run("explain", file, "--model", model, *options)
    assert (status, output) == (2, "")
    assert message in errors
