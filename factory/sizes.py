"""The types of a model's field that holds a size, and the size of a chunk."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from ..tiers import ConfigError
from .base import PART_ALIGNMENT_BYTES
from .text.units import (
    HOW_TO_WRITE,
    NUMBER,
    PATTERN,
    SIZE_BYTES_MAX,
    UNITS,
    Percent,
    parse_option,
    parse_size,
    size_bytes,
)
from .text.wording import shown


def parse_chunk_bytes(text: str) -> int:
    """Read a chunk's size from the command line: whole bytes, or a number with a unit; in whole pages.

    Raises:
        ConfigError: it is not such a size.
    """
    size = parse_option("--chunk-bytes", text)
    if size < PART_ALIGNMENT_BYTES:
        raise ConfigError(
            "--chunk-bytes", f"{size} bytes is too small; a chunk takes at least {PART_ALIGNMENT_BYTES}"
        )
    return -(-size // PART_ALIGNMENT_BYTES) * PART_ALIGNMENT_BYTES


def _parse_capacity(value: object) -> int | Percent:
    size = parse_size(value)
    if size_bytes(size, SIZE_BYTES_MAX) == 0:
        raise ValueError(f"{shown(value)} is zero; {HOW_TO_WRITE}")
    return size


def _parse_whole(value: object) -> int:
    size = _parse_capacity(value)
    if isinstance(size, Percent):
        raise ValueError(f'should be bytes, not a percentage like {shown(value)}; for example "1.2PB"')
    return size


def _serialized(size: int | Percent) -> int | str:
    return size if isinstance(size, int) else str(size)


_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": SIZE_BYTES_MAX},
        {"type": "string", "pattern": f"^{PATTERN.pattern}$"},
    ]
}

Size: TypeAlias = Annotated[
    int | Percent,
    PlainValidator(parse_size),
    PlainSerializer(_serialized, when_used="json"),
    WithJsonSchema(_SCHEMA),
]
"""The type of a model's field that holds a size; 0 is one."""

Capacity: TypeAlias = Annotated[
    int | Percent,
    PlainValidator(_parse_capacity),
    PlainSerializer(_serialized, when_used="json"),
    WithJsonSchema(_SCHEMA),
]
"""The type of a model's field that holds a size above zero."""

WholeSize: TypeAlias = Annotated[
    int,
    PlainValidator(_parse_whole),
    WithJsonSchema(
        {"anyOf": [_SCHEMA["anyOf"][0], {"type": "string", "pattern": f"^{NUMBER} ?({'|'.join(UNITS)})$"}]}
    ),
]
"""The type of a model's field that holds a size above zero, which is a share of nothing."""
