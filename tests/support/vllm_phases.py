"""What a server answers in one state of its tiers after another."""

from __future__ import annotations

import fcntl
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prompts import Prompt, prompt_pairs
from vllm_server import Answer, Samples, Server

Tokens = list[tuple[int, ...]]

MakeServer = Callable[..., Server]


@dataclass(frozen=True, slots=True)
class Phase:
    """What a server answered to the prompts in one state of the tiers, and how its metrics changed."""

    answers: list[Answer]
    before: Samples
    after: Samples

    @property
    def tokens(self) -> Tokens:
        return [answer.tokens for answer in self.answers]

    @property
    def cached_tokens(self) -> list[int]:
        return [answer.cached_tokens for answer in self.answers]

    def change(self, name: str, **labels: str) -> float:
        """How much a counter grew."""
        return self.after.total(name, **labels) - self.before.total(name, **labels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the lives of one store of chunks have shown."""

    cold: Phase
    pinned: Phase
    pinned_pairs: Phase
    nvme: Phase
    nvme_pairs: Phase


@dataclass(frozen=True, slots=True)
class KilledOutcome:
    """What two lives with a tight pinned tier have shown; the first ended by SIGKILL amid its work."""

    records: Path
    cold: Phase
    squeezed: Phase
    left_in_shared_memory: list[Path]
    restarted: Phase


def alone(server: Server, prompts: list[Prompt]) -> Phase:
    """Send each prompt to a device that remembers nothing, and let all stores reach the last tier."""
    before = server.drain()
    answers = server.generate(prompts, forget=True)
    return Phase(answers, before, server.drain())


def in_pairs(server: Server) -> Phase:
    """Send each pair to a device that remembers nothing: the second finds blocks that the first loaded."""
    before = server.drain()
    answers: list[Answer] = []
    for pair in prompt_pairs():
        server.forget()
        answers += server.generate(pair)
    return Phase(answers, before, server.drain())


def nobodys_shared_memory() -> list[Path]:
    """kvtier's files in shared memory whose lock is to be had: no living server has them."""
    # A killed server leaves its index there, a directory, for the next start on this boot.
    return [file for file in Path("/dev/shm").glob("kvtier*") if file.is_file() and _is_nobodys(file)]


def foreign_loads(records: Path) -> list[dict[str, str]]:
    """The loads that brought bytes which no earlier store of that chunk had taken; there must be loads."""
    stored = defaultdict(set)
    foreign, loads_count = [], 0
    for record in map(json.loads, records.read_text().splitlines()):
        if record["direction"] == "store":
            stored[record["key"]].add(record["digest"])
            continue
        loads_count += 1
        if record["digest"] not in stored[record["key"]]:
            foreign.append(record)
    assert loads_count > 0, "a run without loads says nothing about them"
    return foreign


def _is_nobodys(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
