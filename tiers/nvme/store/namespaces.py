"""What makes two chunks' bytes interchangeable, written out field by field.

A namespace is the set of chunks of one identity. Its digest covers every field, so a changed field is
another namespace and never a wrong hit; the fields themselves are kept beside the chunks, so that a
person can be told *which* field changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SAMPLE_BYTES = 64 * 1024  # read at each sampled place of a weights file
SAMPLES_PER_SHARD = 4  # first, two inside, last: enough to tell a fine-tune, which changes every tensor
HEADER_BYTES_MAX = 16 * 1024 * 1024  # of a safetensors header; real ones are far below 1 MiB
SHARDS_SAMPLED_MAX = 256  # bounds what a start reads: 256 shards * 4 * 64 KiB = 64 MiB, beside the headers

ONE_PROCESS = "process"  # the field of a namespace that nobody but one process ever uses

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


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields that decide whether a stored chunk may be used, in order.

    Attributes:
        fields: value by field; every one is part of the digest, and so is their order.
        name: what listings call the namespace; not part of the digest. The "model" field if not given.
    """

    fields: Mapping[str, str]
    name: str = ""

    @property
    def digest(self) -> bytes:
        """32 bytes that name the namespace."""
        text = json.dumps(list(self.fields.items()), ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(b"kvtier identity 1\0" + text.encode()).digest()

    @property
    def label(self) -> str:
        """What to call the namespace in a sentence."""
        return self.name or self.fields.get("model", "") or self.digest.hex()[:12]

    @property
    def is_of_one_process(self) -> bool:
        """Whether the namespace is worth nothing once the process that made it has ended."""
        return ONE_PROCESS in self.fields

    def of_one_process(self) -> Identity:
        """The same, shared with nobody: for weights that no field can name."""
        return Identity({**self.fields, **one_process()}, self.name)

    def differences(self, other: Identity) -> tuple[str, ...]:
        """One part of a sentence for each field in which `other` differs; empty when all are equal."""
        named = dict.fromkeys((*self.fields, *other.fields))
        return tuple(
            f"{field} is {self.fields.get(field)!r} here and {other.fields.get(field)!r} there"
            for field in named
            if self.fields.get(field) != other.fields.get(field)
        )

    def to_json(self) -> dict[str, object]:
        return {"name": self.label, "fields": list(map(list, self.fields.items()))}

    @staticmethod
    def from_json(document: object) -> Identity:
        """The inverse of `to_json`.

        Raises:
            ValueError: the document is not one.
        """
        if not isinstance(document, dict):
            raise ValueError("an identity is an object")
        name, fields = document.get("name"), document.get("fields")
        if not isinstance(name, str) or not isinstance(fields, list):
            raise ValueError("an identity has a name and a list of fields")
        return Identity({str(field): str(value) for field, value in fields}, name)


def one_process() -> dict[str, str]:
    """The field that makes a namespace this process' own, until it ends."""
    return {ONE_PROCESS: str(uuid.uuid4())}


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
