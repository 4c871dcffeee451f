"""A process that shares arenas, driven by a test over its standard streams; one JSON list a line each way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.arenafile import arena_path

PART_BYTES = 5000


class ArenaChild:
    """The test's end. `ask` sends an order and waits for its answer; `send` and `answer` do half each."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, *order: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, *order: Any) -> Any:
        self.send(*order)
        return self.answer()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.join()

    def join(self) -> None:
        """Let it end by itself, which it does where its orders end."""
        self._process.communicate()


class _Orders:
    """The other end: what a child can do."""

    def __init__(self) -> None:
        self.arena: Arena | None = None
        self.fd = -1

    def attach(self, name: str, mappers: int, ranks: int = 2, slot_count: int = 8) -> str:
        try:
            self.arena = share(name, mappers, ranks, slot_count)
        except TierUnavailable as error:
            return str(error)
        return "attached"

    def write(self, index: int, value: int) -> None:
        assert self.arena is not None
        self.arena.buffer(index)[:] = bytes([value]) * self.arena.slot_bytes

    def read(self, index: int) -> list[int]:
        assert self.arena is not None
        return sorted(set(self.arena.buffer(index)))

    def store_ended(self, slots: list[int], rank: int, failed: bool) -> None:
        assert self.arena is not None
        self.arena.store_ended(np.array(slots, np.int64), rank, failed=failed)

    def load_ended(self, slots: list[int], rank: int) -> None:
        assert self.arena is not None
        self.arena.load_ended(np.array(slots, np.int64), rank)

    def close(self) -> None:
        assert self.arena is not None
        self.arena.close()

    def hold_critical_section(self, name: str) -> None:
        """And never come out of it, as a stopped process does."""
        self.fd = os.open(arena_path(name), os.O_RDWR)
        fcntl.lockf(self.fd, fcntl.LOCK_EX)


def share(name: str, mappers: int, ranks: int = 2, slot_count: int = 8) -> Arena:
    return Arena.shared(name, slot_count, PART_BYTES, ranks, mappers=mappers, ranks=ranks)


if __name__ == "__main__":
    orders = _Orders()
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(getattr(orders, what)(*arguments)), flush=True)
