"""The tier document's fields, from its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kvtier.factory.config import BUILTIN_CONFIGS
from kvtier.factory.schema import config_schema

from .tables import MADE, code, table

Schema = Mapping[str, Any]

HEADINGS = ("field", "value", "default", "meaning")
OPENING = """# Tier document

Every field of the document that describes a chain of tiers. [Quick start](../start/document.md) shows how to
write and check one; `kvtier schema` prints the same as JSON Schema. Unknown fields are refused.

A *size* is a number of bytes, or text such as `"64GiB"` or `"1.5TB"`. A *share* is a size, or text such as
`"80%"`.

## The document

"""
CLOSING = """
## A tier of another package

A tier whose `type` is none of these is another package's. `module_path` names the module of its class, unless
the package is installed and offers it by an entry point. The other fields are that package's.
"""


def page() -> str:
    schema = config_schema()
    parts = [MADE, OPENING, fields(schema)]
    for name, model in BUILTIN_CONFIGS.items():
        entry = schema["$defs"][model.__name__]
        parts.append(f"\n## `{name}`\n\n{entry['description']}\n\n{fields(entry)}")
        for field, drive in _objects(entry):
            parts.append(f"\n### An entry of `{field}`\n\nText, or an object:\n\n{fields(drive)}")
    return "".join(parts) + CLOSING


def fields(schema: Schema) -> str:
    required = schema.get("required", ())
    usual = schema.get("then", {}).get("properties", {})  # of a condition, where it holds by default
    return table(
        HEADINGS,
        (
            (
                code(name),
                value(usual.get(name, field)),
                default(field, name in required),
                field["description"],
            )
            for name, field in schema["properties"].items()
        ),
    )


def value(field: Schema) -> str:
    """What may be written, in words."""
    if "const" in field:
        return code(json.dumps(field["const"]))
    if "enum" in field:
        return " or ".join(code(json.dumps(choice)) for choice in field["enum"])
    if "anyOf" in field:
        return _any_of(field["anyOf"])
    kinds = {"boolean": "true or false", "integer": "whole number", "number": "number", "array": "list"}
    return kinds.get(field["type"], "text") + _bounds(field)


def _any_of(choices: list[Schema]) -> str:
    patterns = [choice.get("pattern", "") for choice in choices]
    if any("GiB" in pattern for pattern in patterns):
        return "share" if any("%" in pattern for pattern in patterns) else "size"
    kinds = [value(choice) for choice in choices if choice["type"] != "null"]
    return " or ".join(dict.fromkeys(kinds))


def _bounds(field: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    said = [f"{word} {field[name]:g}" for name, word in words.items() if name in field]
    return f", {' and '.join(said)}" if said else ""


def default(field: Schema, required: bool) -> str:
    if required or "const" in field:
        return "required"
    found = field.get("default")
    return "" if found is None else code(json.dumps(found))


def _objects(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Objects among what the entries of a list may be."""
    for name, field in schema["properties"].items():
        for choice in field.get("anyOf", ()):
            items = choice.get("items", {})
            yield from ((name, kind) for kind in items.get("anyOf", ()) if kind.get("type") == "object")
