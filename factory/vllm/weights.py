"""A fingerprint of a model's weights: a few MiB of samples instead of all bytes."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SAMPLE_BYTES = 64 * 1024  # read at each sampled place of a weights file
SAMPLES_PER_SHARD = 4  # first, two inside, last: enough to tell a fine-tune, which changes every tensor
HEADER_BYTES_MAX = 16 * 1024 * 1024  # of a safetensors header; real ones are far below 1 MiB
SHARDS_SAMPLED_MAX = 256  # bounds what a start reads: 256 shards * 4 * 64 KiB = 64 MiB, beside the headers

_WHOLE_FILES = (
    "config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)
_SHARD_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def weights_fingerprint(model_dir: str | os.PathLike[str]) -> str:
    """A hex digest of a model directory that changes when its weights or its tokenizer do.

    Covers the configuration and tokenizer files whole; of each weights file its name, its size, its
    safetensors header, and `SAMPLES_PER_SHARD` samples of `SAMPLE_BYTES` spread over the first
    `SHARDS_SAMPLED_MAX` files. So it reads some tens of MiB of a model of any size. An edit of a few
    bytes between two samples goes unnoticed: for that there is `weights_epoch`.

    Raises:
        OSError: the directory or one of its files cannot be read.
    """
    directory = Path(model_dir)
    digest = hashlib.sha256(b"kvtier weights 1\0")
    for name in _WHOLE_FILES:
        path = directory / name
        if path.is_file():
            _add(digest, name.encode(), path.read_bytes())
    for count, path in enumerate(_shards(directory)):
        _add(digest, path.name.encode(), str(path.stat().st_size).encode())
        if count < SHARDS_SAMPLED_MAX:
            with path.open("rb") as shard:
                for part in _sampled(shard, path):
                    _add(digest, b"sample", part)
    return digest.hexdigest()


def _shards(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in _SHARD_SUFFIXES)


def _sampled(shard: BinaryIO, path: Path) -> Iterator[bytes]:
    size_bytes = path.stat().st_size
    if path.suffix == ".safetensors":
        prefix = shard.read(8)
        if len(prefix) == 8:
            (header_bytes,) = struct.unpack("<Q", prefix)
            yield prefix + shard.read(min(header_bytes, HEADER_BYTES_MAX))
    last = max(0, size_bytes - SAMPLE_BYTES)
    for sample in range(SAMPLES_PER_SHARD):
        shard.seek(last * sample // (SAMPLES_PER_SHARD - 1))
        yield shard.read(SAMPLE_BYTES)


def _add(digest: hashlib._Hash, label: bytes, data: bytes) -> None:
    digest.update(struct.pack("<QQ", len(label), len(data)))
    digest.update(label)
    digest.update(data)
