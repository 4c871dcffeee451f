"""What commands print with `--json`, from the classes of their output."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from kvtier.factory.cli.output import SHAPES_VERSION
from kvtier.factory.cli.shapes import SHAPES, schema_of

from .tables import MADE, code, table

OPENING = f"""# JSON of the commands

With `--json` a command prints one object. `command` says which it is of, and `version` is {SHAPES_VERSION}: a
key that goes or changes its meaning raises it, a new key does not. Names end in their unit: `_bytes`, `_s`
(seconds), `_ms`, `_percent`; `_unix_s` is a date, in seconds since 1970. Every key is always there, with
`null` where nothing can be said. Warnings and errors go to the standard error as text, progress too.

"""
ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)

Schema = Mapping[str, Any]


def page() -> str:
    return MADE + OPENING + "\n".join(f"## `{name}`\n\n{_command(name)}" for name in SHAPES)


def _command(name: str) -> str:
    schema = schema_of(name)
    own = {key: value for key, value in schema["properties"].items() if key not in ("command", "version")}
    parts = [_summary(schema) + "\n\n" + _keys(SHAPES[name], own)]
    classes = dict(_classes(SHAPES[name]))
    for title, entry in schema.get("$defs", {}).items():
        keys = _keys(classes[title], entry["properties"])
        parts.append(f"**{code(title)}**: {_summary(entry)}\n\n{keys}")
    return "\n".join(parts)


def _keys(owner: type, properties: Mapping[str, Schema]) -> str:
    meanings = dict(_meanings(owner))
    return table(
        ("key", "value", "meaning"),
        ((code(key), _value(value), meanings.get(key, "")) for key, value in properties.items()),
    )


def _value(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_value, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    if "$ref" in schema:
        return code(schema["$ref"].rsplit("/", 1)[1])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_value(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object: {_value(schema['additionalProperties'])} by name"
    return str(kind)


def _summary(schema: Schema) -> str:
    return str(schema["description"]).split("\n\nAttributes:")[0].strip()


def _meanings(owner: type) -> Iterator[tuple[str, str]]:
    for one in reversed(owner.__mro__):
        _, _, attributes = (inspect.getdoc(one) or "").partition("Attributes:\n")
        yield from ATTRIBUTE.findall(attributes)


def _classes(owner: type) -> Iterator[tuple[str, type]]:
    """Every class that may stand in a schema, by its name there."""
    for module in {one.__module__ for one in SHAPES.values()} | {base.__module__ for base in owner.__mro__}:
        for name, value in vars(sys.modules.get(module)).items():
            if inspect.isclass(value):
                yield name, value
