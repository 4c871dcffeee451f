"""The shapes of what commands print with `--json`: a dataclass each, and the JSON Schema made from it.

Sizes are in bytes, and dates, which end in `_unix_s`, in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .output import SHAPES_VERSION
from .planning.shapes import Check, Explain, Init, Replay
from .store.shapes import Du, Export, Fsck, Import, Ls, Rm
from .watching.shapes import Bench, Doctor, Top

SHAPES: Mapping[str, type] = {
    "init": Init,
    "check": Check,
    "explain": Explain,
    "doctor": Doctor,
    "bench": Bench,
    "replay": Replay,
    "du": Du,
    "ls": Ls,
    "rm": Rm,
    "fsck": Fsck,
    "top": Top,
    "export": Export,
    "import": Import,
}


def schema_of(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints, its envelope included; it names every key there is."""
    from pydantic import TypeAdapter

    schema = _closed(TypeAdapter(SHAPES[command]).json_schema(mode="serialization"))
    envelope = {"command": {"const": command}, "version": {"const": SHAPES_VERSION}}
    return {
        **schema,
        "properties": {**envelope, **schema["properties"]},
        "required": [*envelope, *schema["required"]],
    }


def _closed(schema: Any) -> Any:
    """The same, where no object has keys beside those that are named."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in closed else closed
