"""The shapes of what commands print with `--json`: a dataclass each, and the JSON Schema made from it.

Sizes are in bytes, and dates, which end in `_unix_s`, in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...engine.replay.replay import ReplayFigures, TierFigures
from ...tiers.nvme.admin.survey import NamespaceUsage, Usage
from .output import SHAPES_VERSION
from .watching.looks import EngineNow


@dataclass(frozen=True, slots=True)
class DriveRoom:
    """The room of one drive of a document.

    Attributes:
        place: where its path stands in the document.
        mount: the file system, for people.
        own_bytes: what the directory takes already.
        cap_bytes: what it can take as things are.
        bound_by: what keeps it from taking more: its capacity, the free space, or other tiers.
    """

    place: str
    path: str
    mount: str
    capacity_bytes: int
    reserve_bytes: int
    file_system_bytes: int
    free_bytes: int
    own_bytes: int
    cap_bytes: int
    bound_by: str


@dataclass(frozen=True, slots=True)
class Check:
    """A document as this machine resolves it, the room of its drives, and what is probably a mistake."""

    document: dict[str, Any]
    drives: tuple[DriveRoom, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayTier(TierFigures):
    """What one tier did."""

    capacity_chunks: int


@dataclass(frozen=True, slots=True)
class Replay(ReplayFigures):
    """What the tiers of a document did for a trace; rates in percent of all prompt chunks.

    Attributes:
        unlimited_hit_rate_percent: of a cache without a limit.
        policy: of the pinned tier.
        step_chunks: chunks of a prompt that are stored in one step; null for all at once.
        first_tokens: null where no speeds were given.
    """

    tiers: tuple[ReplayTier, ...]
    unlimited_hit_rate_percent: float
    chunk_bytes: int
    policy: str
    step_chunks: int | None


@dataclass(frozen=True, slots=True)
class StoreUsage(Usage):
    """How the room of one directory is used.

    Attributes:
        parts: what is allocated by part of the directory.
        capacity_bytes: the most that it may take, as the last server that opened it has set it.
        cap_bytes: what it can take as things are.
        useful_bytes: of chunks that were ever read back, or used in another tier.
        endurance_bytes: what the drive is rated for; 0 where the document does not say.
        years_left: null where it cannot be said.
    """

    path: str


@dataclass(frozen=True, slots=True)
class Du:
    """How the room of directories is used."""

    stores: tuple[StoreUsage, ...]


@dataclass(frozen=True, slots=True)
class Ls:
    """The namespaces of a directory."""

    path: str
    namespaces: tuple[NamespaceUsage, ...]


@dataclass(frozen=True, slots=True)
class RemovedPart:
    """What was removed, or would be, of one namespace."""

    digest: str
    label: str
    chunks: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rm:
    """What was removed from a directory, or with `dry_run` would be."""

    path: str
    dry_run: bool
    chunks: int
    size_bytes: int
    namespaces: tuple[RemovedPart, ...]


@dataclass(frozen=True, slots=True)
class FoundDamage:
    """One thing that is wrong, with a sentence for people; `place` is a key, a digest or a segment."""

    kind: str
    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Fsck:
    """What a check of a directory has found, and how much of it was repaired."""

    path: str
    segments: int
    chunks: int
    repaired: int
    findings: tuple[FoundDamage, ...]


@dataclass(frozen=True, slots=True)
class Top:
    """What the engines on a store do, the oldest first; rates are since a look about a second before."""

    engines: tuple[EngineNow, ...]


SHAPES: Mapping[str, type] = {
    "check": Check,
    "replay": Replay,
    "du": Du,
    "ls": Ls,
    "rm": Rm,
    "fsck": Fsck,
    "top": Top,
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
