import json
import struct
from pathlib import Path

import pytest

from kvtier.factory.vllm.weights import SAMPLE_BYTES, weights_fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("of no consequence")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for shard in ("a.safetensors", "b.safetensors"):
        data = struct.pack("<Q", len(header)) + header + bytes(8 * SAMPLE_BYTES)
        (tmp_path / shard).write_bytes(data)
    return tmp_path


def test_the_fingerprint_is_the_same_for_a_copy(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = weights_fingerprint(model)
    (model / "README.md").write_text("changed")
    copy = tmp_path_factory.mktemp("copy")
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert weights_fingerprint(copy) == before


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("config.json", 2),
        ("tokenizer.json", 0),
        ("a.safetensors", 12),
        ("a.safetensors", 200),
        ("b.safetensors", -1),
        ("b.safetensors", 3 * SAMPLE_BYTES),
    ],
)
def test_a_changed_byte_that_is_read_changes_the_fingerprint(model: Path, name: str, place: int) -> None:
    before = weights_fingerprint(model)
    data = bytearray((model / name).read_bytes())
    data[place] ^= 1
    (model / name).write_bytes(data)
    assert weights_fingerprint(model) != before


def test_names_and_sizes_of_shards_count(model: Path) -> None:
    before = weights_fingerprint(model)
    (model / "b.safetensors").rename(model / "c.safetensors")
    renamed = weights_fingerprint(model)
    (model / "c.safetensors").write_bytes((model / "c.safetensors").read_bytes() + b"\0")
    longer = weights_fingerprint(model)
    (model / "c.safetensors").unlink()
    assert len({before, renamed, longer, weights_fingerprint(model)}) == 4


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        weights_fingerprint(tmp_path / "none")
