"""Lives of a process that uses a store until it is killed, begun by fork from a warm parent.

The parent is this program: it reads one life a line on stdin, as JSON, forks, waits, and answers with one
line: how the life ended and what it had been promised until then.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from nvme_rig import IDENTITY, filled, keys_of, opened, right

from kvtier.tiers.base import ChunkKey, RemoveReason
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.namespaces import Identity

LIFE_MAX_S = 20.0  # a life that was not killed and does not end is stuck
FLUSH_ODDS, LOAD_ODDS, REMOVE_ODDS, EPOCH_ODDS = 0.4, 0.5, 0.1, 0.02
BATCH_MAX = 8
ROUNDS = 12


class DeadlyFiles(Files):
    """The real files, until a named step is reached for the nth time: then the process is killed."""

    def __init__(self, step: str, visit: int) -> None:
        self._step, self._visit = step, visit
        self._visits: Counter[str] = Counter()

    def reached(self, step: str) -> None:
        self._visits[step] += 1
        if step == self._step and self._visits[step] == self._visit:
            os.kill(os.getpid(), signal.SIGKILL)


def say(**line: Any) -> None:
    """One write, so that a kill leaves a whole line or none."""
    os.write(1, (json.dumps(line) + "\n").encode())


async def live(life: dict[str, Any]) -> None:
    """Store, load, flush and remove at random; say what is promised once it is."""
    rng = random.Random(life["seed"])
    files = DeadlyFiles(life["step"], life["visit"])
    capacity = life["capacity_bytes"]
    if life["step"] == "removed a segment file":
        capacity = max(life["least_bytes"], capacity // 2)  # room has to be given back
    identity = Identity({**IDENTITY.fields, "model": life["model"]})
    tier = await opened(Path(life["path"]), capacity_bytes=capacity, files=files, identity=identity)
    unflushed: list[ChunkKey] = []
    first, invalidated = life["first"], False
    for _ in range(ROUNDS):
        keys = keys_of(first, rng.randint(1, BATCH_MAX))
        first += len(keys)
        say(asked=first, never_again=[key.decode() for key in keys] if invalidated else [])
        outcome = await tier.store(keys, filled(keys))
        unflushed += outcome.succeeded
        if rng.random() < LOAD_ODDS:
            await right(tier, [key for key in keys_of(max(0, first - 40), 40) if rng.random() < 0.3])
        if rng.random() < REMOVE_ODDS:
            gone = rng.sample(keys, 1)
            say(removing=[key.decode() for key in gone])
            await tier.remove(gone, RemoveReason.REQUESTED)
            unflushed = [key for key in unflushed if key not in gone]
        if rng.random() < EPOCH_ODDS or life["step"] == "epoch raised":
            say(invalidating=True)
            unflushed, invalidated = [], True
            await tier.invalidate()
        if rng.random() < FLUSH_ODDS:
            await tier.flush()
            say(durable=[] if invalidated else [key.decode() for key in unflushed])
            unflushed = []
    await tier.close()


def run_one(life: dict[str, Any]) -> dict[str, Any]:
    """Fork a life and collect what it says until it ends; kill it at its time, if it has one."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            os.dup2(writer, 1)
            asyncio.run(live(life))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    said, killed_by_clock = _listen(reader, child, life["kill_after_s"])
    _, status = os.waitpid(child, 0)
    os.close(reader)
    lines = [json.loads(line) for line in said.decode().splitlines()]
    killed = os.WIFSIGNALED(status)
    return {"killed": killed, "status": status, "by_clock": killed_by_clock, "said": lines}


def _listen(reader: int, child: int, kill_after_s: float | None) -> tuple[bytes, bool]:
    said, killed = b"", False
    end_s = time.monotonic() + (LIFE_MAX_S if kill_after_s is None else kill_after_s)
    while True:
        readable, _, _ = select.select([reader], [], [], max(0.0, end_s - time.monotonic()))
        if readable:
            part = os.read(reader, 65536)
            if not part:
                return said, killed
            said += part
        elif not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
            end_s = time.monotonic() + LIFE_MAX_S


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(run_one(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
