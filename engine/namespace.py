"""The namespace of a library's chunks: what the user names, and what the engine adds about the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tiers.errors import ConfigError

_WHY_RESERVED = {
    "weights_epoch": 'set "weights_epoch" in the tier config instead, or call yours "revision", say',
    "layout": 'the engine fills it in from the tensors; call yours "kv_layout", say',
    "blocks_per_chunk": "the engine fills it in; name yours otherwise",
    "process": "it would make a namespace that is forgotten at close; name yours otherwise",
    "parts": "it is kvtier's own; name yours otherwise",
}
RESERVED_PREFIX = "kvtier."


def checked_namespace(namespace: Any) -> dict[str, str]:
    """The fields that a user has given, each of them text under a name that kvtier does not use itself.

    Raises:
        ConfigError: one of them is not; `namespace.FIELD` says which.
    """
    if namespace is None:
        return {}
    if not isinstance(namespace, Mapping):
        raise ConfigError(
            "namespace", f'should map names to text, as {{"model": "llama"}}, not {namespace!r:.80}'
        )
    return dict(_checked_field(name, value) for name, value in namespace.items())


def with_tensors(namespace: Mapping[str, str], layout: str, blocks_per_chunk: int) -> dict[str, str]:
    """The user's fields, and those that the engine adds."""
    return {**namespace, "layout": layout, "blocks_per_chunk": str(blocks_per_chunk)}


def _checked_field(name: Any, value: Any) -> tuple[str, str]:
    if not isinstance(name, str) or not name:
        raise ConfigError("namespace", f"the name of a field should be text, not {name!r:.80}")
    where = f"namespace.{name}"
    if name in _WHY_RESERVED or name.startswith(RESERVED_PREFIX):
        raise ConfigError(where, f"a reserved name: {_WHY_RESERVED.get(name, _WHY_RESERVED['parts'])}")
    if not isinstance(value, str):
        raise ConfigError(
            where, f"should be text, not {value!r:.80}; write {str(value)!r:.80} if you mean that"
        )
    for text in (name, value):
        if not _is_written_as_utf8(text):
            raise ConfigError(f"namespace.{name!a}", f"holds half a character: {text!a:.80}")
    return str.__str__(name), str.__str__(value)  # text itself, also of a member of an enumeration


def _is_written_as_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
