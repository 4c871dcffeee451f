"""What commands print with --json has the shape that is documented, and every command has one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import jsonschema
import pytest
from nvme_rig import keys_of

from kvtier.factory.cli import app as cli
from kvtier.factory.cli.shapes import SHAPES, schema_of

Run = Callable[..., tuple[int, str, str]]

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 256,
    "dtype": "bfloat16",
}
REPLAYED: dict[str, Any] = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64KiB"}]}


@pytest.fixture
def commands(path: Path, file: Path, tmp_path: Path) -> dict[str, list[list[object]]]:
    """Each command as it is called to print something of every kind that it may."""
    damage.using(path, damage.flipped(keys_of(7, 1)[0]))
    trace, replayed = tmp_path / "trace.jsonl", tmp_path / "replayed.json"
    trace.write_text('{"hash_ids": [1, 2]}\n{"hash_ids": [1, 3]}\n')
    replayed.write_text(json.dumps(REPLAYED))
    replay: list[object] = [trace, "--config", replayed, "--chunk-bytes", 4096]
    model = tmp_path / "config.json"
    model.write_text(json.dumps(LLAMA))
    small, pack = tmp_path / "small.json", tmp_path / "chunks.kvtpack"
    tiers = [*REPLAYED["tiers"], {"type": "nvme", "path": str(path), "capacity": "64MiB", "reserve": 0}]
    small.write_text(json.dumps({**REPLAYED, "tiers": tiers}))
    return {
        "init": [[tmp_path / "made.json", "--pinned", "32MiB", "--nvme", "none"]],
        "check": [[file]],
        "explain": [
            [file, "--model", model],
            [file, "--model", model, "--gpu-memory", "80GiB", "--weights", 1],
        ],
        "doctor": [[], [path], [small]],
        "bench": [[small, "--seconds", 0.5, "--chunk-bytes", "64KiB"]],
        "replay": [
            [*replay, "--compare", "--sweep", "pinned", "--jobs", 1],
            [*replay, "--prefill-tokens-per-s", 10, "--load-bytes-per-s", "1GB"],
        ],
        "export": [[path, "-o", pack]],
        "import": [[path, pack]],
        "du": [[path], [path, path]],
        "ls": [[path]],
        "rm": [[path, "--never-read", "--dry-run"], [path, "--never-read"], [path, "--namespace", "none"]],
        "fsck": [[path], [path, "--deep"]],
        "top": [[]],
    }


def test_what_each_command_prints_has_its_shape(run: Run, commands: dict[str, list[list[object]]]) -> None:
    assert set(commands) == set(SHAPES)
    for command, calls in commands.items():
        for arguments in calls:
            status, output, errors = run(command, *arguments, "--json")
            assert status in (0, 1), errors
            jsonschema.validate(json.loads(output), schema_of(command))


def test_every_command_with_json_has_a_shape() -> None:
    assert {
        cli.name_of(command) for command in cli.COMMANDS if "as_json" in inspect.signature(command).parameters
    } == set(SHAPES)


def test_a_shape_names_every_key_there_is() -> None:
    with pytest.raises(jsonschema.ValidationError, match="'bytes' was unexpected"):
        jsonschema.validate({"command": "du", "version": 1, "stores": [], "bytes": 1}, schema_of("du"))
