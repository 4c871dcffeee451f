"""The shapes of what the commands on a store print with `--json`."""

from __future__ import annotations

from dataclasses import dataclass

from ....tiers.nvme.admin.survey import NamespaceUsage, Usage


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
class Export:
    """What a pack has, and what of the chosen chunks it has not: evicted meanwhile, or damaged."""

    path: str
    namespace: str
    chunks: int
    size_bytes: int
    gone_chunks: int
    damaged_chunks: int


@dataclass(frozen=True, slots=True)
class Import:
    """What became of the chunks of a pack.

    Attributes:
        there_chunks: those that the directory had already.
        evicted_chunks: older ones of the directory that made room.
        failed: how many could not be stored, by reason.
        error: why the rest of the pack could not be read; null where all of it was.
    """

    path: str
    chunks: int
    size_bytes: int
    there_chunks: int
    evicted_chunks: int
    damaged_chunks: int
    failed: dict[str, int]
    error: str | None
