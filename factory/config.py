"""The tier-config document: read, checked, resolved.

`parse_config` looks at nothing but the document. `load_config` also reads it from a file.
`resolve_config` looks at the machine: percentages become bytes, paths are probed. `probe_config` looks
at existing directories and stores. Each either succeeds or raises one `ConfigError`. `shortages` and
`remarks` refuse nothing: they list where memory is too small right now, and what works but is probably a
mistake.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from ..tiers import ConfigError
from .base import TierConfig
from .drives import Directory
from .entries import GpuConfig, NvmeConfig, PinnedConfig
from .recording import refuse_absent, refuse_inside
from .registry import module_of_tier, tier_factory, tier_types
from .room import Room, rooms_of
from .text.wording import listed, nearest, quoted, reason_of, shown
from .validation import import_named, joined, validated

BUILTIN_CONFIGS: Mapping[str, type[TierConfig]] = {
    "gpu": GpuConfig,
    "pinned": PinnedConfig,
    "nvme": NvmeConfig,
}

VERSION = 1

DOCUMENT_BYTES_MAX = 1 << 20  # a document takes a few hundred bytes; a larger file is something else


OnReset: TypeAlias = Literal["invalidate", "keep"]
Recompute: TypeAlias = Literal["auto", "never"]


class KvtierConfig(BaseModel):
    """A chain of tiers, from the device down."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    tiers: tuple[SerializeAsAny[TierConfig], ...]
    weights_epoch: int = 0
    on_reset: OnReset = "invalidate"
    recompute: Recompute = "auto"
    trace: Path | None = None


def _known_version(version: object) -> object:
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"should be {VERSION}, the only version there is, not {shown(version)}")
    return version


class _Document(BaseModel):
    """What the document is before each tier's own model has seen its entry."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[Literal[1], BeforeValidator(_known_version), Field(examples=[1])]
    tiers: Annotated[list[Any], Field(examples=[[{"type": "gpu"}]])]
    weights_epoch: Annotated[int, Field(strict=True, ge=0, examples=[1])] = 0
    on_reset: Annotated[OnReset, Field(examples=["invalidate"])] = "invalidate"
    recompute: Annotated[Recompute, Field(examples=["auto"])] = "auto"
    trace: Annotated[Directory | None, Field(examples=["/var/log/kvtier.jsonl"])] = None
    json_schema: Annotated[str | None, Field(alias="$schema")] = None


def load_config(source: str | Path | Mapping[str, Any]) -> KvtierConfig:
    """Read and check a document: the path of a file, or the document itself.

    Raises:
        ConfigError: the first thing wrong.
    """
    return parse_config(read_document(Path(source)) if isinstance(source, str | Path) else source)


def read_document(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        ConfigError: it cannot be read, or is not JSON; says where.
    """
    try:
        content = _beginning(path)
    except (OSError, ValueError) as error:
        _refuse_file(path, error)
    if content is None:
        raise ConfigError("", f"{path}: not a regular file")
    return parse_document(content, str(path))


def parse_document(content: bytes, name: str) -> Any:
    """Parse JSON no longer than a document may be, of which one byte more was read at most.

    Raises:
        ConfigError: it is longer, or is not JSON; says where.
    """
    if len(content) > DOCUMENT_BYTES_MAX:
        raise ConfigError("", f"{name}: larger than {DOCUMENT_BYTES_MAX} bytes, which no tier config is")
    return parse_json(content, name)


def _beginning(path: Path) -> bytes | None:
    """Read as much as a document may be long, and one byte more; None for a pipe or a device."""
    with open(path, "rb", opener=_open_at_once) as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return file.read(DOCUMENT_BYTES_MAX + 1) if is_regular else None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a writer at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_file(path: Path, error: Exception) -> NoReturn:
    if str(path).lstrip().startswith("{"):
        raise ConfigError("", "a string is taken as the path of a file; parse the JSON text first") from error
    near = _nearest_file(path) if isinstance(error, FileNotFoundError) else None
    meant = "" if near is None else f"; did you mean {near}?"
    raise ConfigError("", f"{path}: {reason_of(error)}{meant}") from error


def _nearest_file(path: Path) -> Path | None:
    try:
        near = nearest(path.name, os.listdir(path.parent))
    except OSError:
        return None
    return None if near is None else path.with_name(near)


def parse_json(content: bytes, name: str) -> Any:
    """Parse JSON, strictly: no NaN, no key twice in one object. `name` stands for the text in messages.

    Raises:
        ConfigError: it is not JSON; says where.
    """
    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_each_key_once, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError("", f"{name}: {where}: {error.msg[:1].lower()}{error.msg[1:]}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("", f"{name}: not UTF-8 text at byte {error.start}") from error
    except RecursionError as error:
        raise ConfigError("", f"{name}: nested too deeply") from error
    except ValueError as error:
        raise ConfigError("", f"{name}: {error}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} appears twice in one object")
    return fields


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_config(document: Any) -> KvtierConfig:
    """Check a document without looking at the machine.

    Raises:
        ConfigError: the first thing wrong.
    """
    if not isinstance(document, Mapping):
        raise ConfigError("", f'should be an object with "version" and "tiers", not {shown(document)}')
    outline = validated(_Document, document, "")
    places = [f"tiers[{i}]" for i in range(len(outline.tiers))]
    models = [_entry_model(entry, place) for entry, place in zip(outline.tiers, places, strict=True)]
    # Before the entries: a tier in the wrong place is often one under the wrong name.
    _check_order([entry["type"] for entry in outline.tiers])
    tiers = tuple(map(validated, models, outline.tiers, places))
    _check_paths(tiers, outline.trace, os.path.normpath)
    return KvtierConfig(
        version=outline.version,
        tiers=tiers,
        weights_epoch=outline.weights_epoch,
        on_reset=outline.on_reset,
        recompute=outline.recompute,
        trace=outline.trace,
    )


def _entry_model(entry: Any, json_path: str) -> type[TierConfig]:
    example = f"for example {shown({'type': 'gpu'})}"
    if not isinstance(entry, Mapping):
        raise ConfigError(json_path, f"should be an object, not {shown(entry)}; {example}")
    if "type" not in entry:
        near = nearest("type", (key for key in entry if isinstance(key, str)))
        if near is not None:
            raise ConfigError(joined(json_path, [near]), 'unknown key; did you mean "type"?')
        raise ConfigError(f"{json_path}.type", f"missing; choose from {listed(tier_types())}")
    if entry["type"] in list(BUILTIN_CONFIGS) and "module_path" in entry:
        raise ConfigError(
            f"{json_path}.module_path",
            f"{shown(entry['type'])} is a tier of kvtier's own: leave the key out; that of another package "
            "has the name of its factory class for a type",
        )
    return _model_of_type(entry["type"], entry.get("module_path"), json_path)


def _model_of_type(name: Any, module_path: Any, json_path: str) -> type[TierConfig]:
    if not isinstance(name, str):
        raise ConfigError(
            f"{json_path}.type", f"should be a name, not {shown(name)}; choose from {listed(tier_types())}"
        )
    if name in BUILTIN_CONFIGS:
        return BUILTIN_CONFIGS[name]
    if name not in tier_types() and module_path is None:
        near = nearest(name, tier_types())
        meant = f"; did you mean {shown(near)}?" if near else "."
        raise ConfigError(
            f"{json_path}.type",
            f"unknown tier type {shown(name)}{meant} Registered are {listed(tier_types())}; "
            'a tier of another package needs its "module_path"',
        )
    return _imported_model(name, module_path, json_path)


def _imported_model(name: str, module_path: Any, json_path: str) -> type[TierConfig]:
    registered = module_of_tier(name)
    if registered is not None and module_path not in (None, registered):
        raise ConfigError(
            f"{json_path}.module_path",
            f"{shown(name)} is a tier of {quoted(registered)} already; leave the key out or rename the type",
        )
    import_named(registered or module_path, f"{json_path}.module_path")
    try:
        model: type[TierConfig] = tier_factory(name, module_path).Config
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{json_path}.type", str(error)) from error
    return model


def _check_order(types: Sequence[str]) -> None:
    if not types:
        raise ConfigError("tiers", f"should not be empty; it starts with {shown({'type': 'gpu'})}")
    if types[0] != "gpu":
        raise ConfigError(
            "tiers[0].type", f'should be "gpu", the first of every chain, not {shown(types[0])}'
        )
    if len(types) == 1:
        raise ConfigError("tiers", 'nothing below "gpu" to offload to; add a "pinned" tier')
    for i, name in enumerate(types[1:], start=1):
        _check_place(name, types[:i], f"tiers[{i}].type")


def _check_place(name: str, above: Sequence[str], json_path: str) -> None:
    if name == "gpu":
        raise ConfigError(json_path, 'only the first tier is "gpu"')
    if name == "pinned" and "pinned" in above:
        first = f"tiers[{above.index('pinned')}]"
        raise ConfigError(
            json_path, f'at most one tier is "pinned", and {first} is; raise its capacity instead'
        )
    if name != "pinned" and "pinned" not in above:
        raise ConfigError(json_path, f'{shown(name)} needs a "pinned" tier above it, for its transfers')


def _check_paths(tiers: Sequence[TierConfig], trace: Path | None, canonical: Callable[[Path], str]) -> None:
    """Refuse two tiers in one directory, and one, or the trace, in the directory of another."""
    above: list[tuple[Path, str]] = []
    for i, tier in enumerate(tiers):
        if isinstance(tier, NvmeConfig):
            for drive, owner, place in tier.placed(f"tiers[{i}]"):
                for other, first in above:
                    _check_apart(drive.path, other, canonical, first, place)
                above.append((drive.path, owner))
    refuse_inside(trace, above, canonical)


def _check_apart(
    path: Path, other: Path, canonical: Callable[[Path], str], owner: str, json_path: str
) -> None:
    place, taken = Path(canonical(path)), Path(canonical(other))
    if place == taken:
        raise ConfigError(json_path, f"{quoted(path)} is already the directory of {owner}")
    if place.is_relative_to(taken) or taken.is_relative_to(place):
        relation = "lies in" if place.is_relative_to(taken) else "holds"
        raise ConfigError(
            json_path,
            f"{quoted(path)} {relation} {quoted(other)}, the directory of {owner}; choose one beside it",
        )


def resolve_config(config: KvtierConfig, *, chunk_bytes: int) -> KvtierConfig:
    """Return the chain resolved for this machine: percentages become bytes. Changes nothing.

    Args:
        config: a checked document.
        chunk_bytes: size of the largest chunk.

    Raises:
        ConfigError: the first thing that cannot work here.
    """
    _check_paths(config.tiers, config.trace, os.path.realpath)
    refuse_absent(config.trace)
    tiers = (
        tier.resolve(chunk_bytes=chunk_bytes, json_path=f"tiers[{i}]") for i, tier in enumerate(config.tiers)
    )
    return config.model_copy(update={"tiers": tuple(tiers)})


def probe_config(config: KvtierConfig, *, chunk_bytes: int) -> None:
    """Refuse a resolved chain that could not start on this machine now. Changes nothing.

    Args:
        config: what `resolve_config` has returned.
        chunk_bytes: size of the largest chunk.

    Raises:
        ConfigError: the first thing that would stop it.
    """
    for i, tier in enumerate(config.tiers):
        tier.probe(chunk_bytes=chunk_bytes, json_path=f"tiers[{i}]")


def shortages(config: KvtierConfig, *, chunk_bytes: int) -> list[str]:
    """What this machine lacks for the tiers of a resolved chain right now, each with a remedy."""
    found = (
        tier.shortage(chunk_bytes=chunk_bytes, json_path=f"tiers[{i}]") for i, tier in enumerate(config.tiers)
    )
    return [shortage for shortage in found if shortage]


def remarks(config: KvtierConfig) -> list[str]:
    """Say what in a resolved chain works on this machine but is probably a mistake."""
    return [remark for i, tier in enumerate(config.tiers) for remark in tier.remarks(f"tiers[{i}]")]


def rooms(config: KvtierConfig, *, chunk_bytes: int) -> Mapping[str, Room]:
    """The room that each drive of a resolved chain has on this machine now, by the place of its path.

    Raises:
        ConfigError: a path cannot be reached.
    """
    wanted = [
        one
        for i, tier in enumerate(config.tiers)
        if isinstance(tier, NvmeConfig)
        for one in tier.wanted(f"tiers[{i}]")
    ]
    return {room.place: room for room in rooms_of(wanted, chunk_bytes=chunk_bytes)}
