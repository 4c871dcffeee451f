"""What an engine tells on its notice board: facts that stay, and its numbers of one moment; as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1  # of the shape; a reader leaves alone what another version has written


@dataclass(frozen=True, slots=True)
class Facts:
    """What stays as it is while an engine runs.

    Attributes:
        kind: "vllm" or "library".
        model: what to call the namespace; foreign text.
        namespace: the beginning of its digest, in hex.
        chunk_tokens: how many tokens a chunk stands for; None where nobody has said.
        places: the directories of each tier on drives, by its name.
        caps: what each of these can take, and what keeps it from taking more.
    """

    kind: str
    model: str
    namespace: str
    chunk_bytes: int
    chunk_tokens: float | None
    places: Mapping[str, Sequence[str]]
    caps: Mapping[str, Mapping[str, int | str]]


@dataclass(frozen=True, slots=True)
class Board:
    """One engine at one moment, by the clock of the machine.

    Attributes:
        stats: as `ChainStats.as_dict` has them.
        history: earlier moments, oldest first, thinned out; empty where nobody asked for them.
    """

    pid: int
    started_unix_s: float
    now_unix_s: float
    facts: Facts
    stats: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = field(default=())


def encode(board: Board) -> bytes:
    document = asdict(board)
    del document["history"]
    return json.dumps({"kvtier": "live", "version": VERSION, **document}).encode()


def decode(data: bytes) -> Board | None:
    """A board, or None where this is none of this version."""
    try:
        document = json.loads(data)
        if (document.pop("kvtier"), document.pop("version")) != ("live", VERSION):
            return None
        return Board(**{**document, "facts": Facts(**document["facts"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
