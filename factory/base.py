"""The interface for adding a type of tier: the model of its config entry, and the factory that opens it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from ..tiers import Tier

PART_ALIGNMENT_BYTES = 4096  # direct I/O requires it of memory and file offsets


def unique_name(name: str, taken: Collection[str]) -> str:
    """The name of a tier in a chain with tiers of the names `taken` above it: `nvme`, `nvme1`, and so on."""
    numbered = (f"{name}{number}" for number in itertools.count(1))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)


class TierConfig(BaseModel):
    """One entry of the document's `tiers`; each type of tier has a subclass with its own fields.

    A subclass narrows `type` to a Literal, gives each field a description and an example (messages
    and the JSON Schema show both), and overrides `resolve` where a value depends on the machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: str = Field(description="The type of the tier.")
    module_path: str | None = Field(
        default=None,
        description="The module of a tier from another package, whose factory class is named by `type`.",
        examples=["my_package.my_tier"],
    )

    def resolve(self, *, chunk_bytes: int, json_path: str) -> Self:
        """Return the entry resolved for this machine: percentages become bytes, paths are probed.

        Leaves nothing behind on the machine.

        Raises:
            ConfigError: the entry cannot work on this machine; `json_path` names it.
        """
        return self

    def probe(self, *, chunk_bytes: int, json_path: str) -> None:
        """Refuse a resolved entry whose tier would not open, as far as that shows without opening it.

        Changes nothing on the machine.

        Raises:
            ConfigError: the tier cannot be opened now; `json_path` names the entry.
        """

    def shortage(self, *, chunk_bytes: int, json_path: str) -> str:
        """Say what this machine lacks for the resolved tier right now, or return an empty string.

        Unlike what `probe` refuses, it may be there when a server starts, or on another machine.
        """
        return ""

    def remarks(self, json_path: str) -> list[str]:
        """Say what in the resolved entry works on this machine but is probably a mistake."""
        return []

    def summary(self) -> str:
        """The values that matter most, in one line for people."""
        return ""


@dataclass(frozen=True, slots=True)
class SharedPlace:
    """Where the processes of one server find the pinned tier's arena.

    Attributes:
        name: the server's own name, equal in all its processes and in no other server's.
        mappers: processes that will map the arena.
        ranks: those of them that copy between it and a device.
    """

    name: str
    mappers: int
    ranks: int


@dataclass(frozen=True, slots=True)
class TierContext:
    """What a tier needs to know besides its own entry.

    Attributes:
        part_bytes: one rank's bytes of one chunk, at most.
        parts: rank parts of a chunk, side by side.
        identity: what makes two chunks' bytes interchangeable, field by field; a set, so sorted by name.
        place: where the processes that share the arena find it; None if one process holds everything.
        json_path: where the entry stands in the document, for messages: `tiers[2]`.
    """

    part_bytes: int
    parts: int
    identity: Mapping[str, str]
    place: SharedPlace | None = None
    json_path: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", dict(sorted(self.identity.items())))

    @property
    def chunk_bytes(self) -> int:
        """The bytes of one chunk in host memory, where each part starts on its own page."""
        return self.parts * -(-self.part_bytes // PART_ALIGNMENT_BYTES) * PART_ALIGNMENT_BYTES

    def at(self, json_path: str) -> TierContext:
        """The same for the entry at `json_path`."""
        return replace(self, json_path=json_path)


@runtime_checkable
class TierFactory(Protocol):
    """Makes tiers of one type. A registered class is one itself: `open` is a static or class method."""

    Config: type[TierConfig]

    async def open(self, config: Any, context: TierContext) -> Tier:
        """Open the tier that `config`, a resolved instance of `Config`, describes.

        Raises:
            TierUnavailable: it cannot start.
        """
        ...


@runtime_checkable
class Spec(Protocol):
    """What every generation of the server's offloading specs can do."""

    def get_manager(self) -> Any:
        """Return the part that decides what lies where."""
        ...
