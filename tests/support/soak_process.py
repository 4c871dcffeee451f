"""Processes of a soak, forked from their parent, which talks to them over pipes in JSON lines."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from soak_world import World

GROWTH_LEAST_S = 120.0  # over less, what is made once cannot be told from a leak
SAMPLES_LEAST = 8


class Process:
    """A forked process, and the parent's ends of the pipes to it and from it.

    Attributes:
        heard_s: when it has last said something.
    """

    def __init__(self, work: Callable[[int, int], None], log: Path, others: Iterable[Process]) -> None:
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(work, orders, answers, log, [self, *others])
        os.close(orders)
        os.close(answers)
        self.heard_s = time.monotonic()
        self._rest = b""

    def tell(self, **line: Any) -> None:
        try:
            os.write(self.orders, (json.dumps(line) + "\n").encode())
        except BrokenPipeError:
            return  # it was killed: its end is read next

    def lines(self) -> list[dict[str, Any]] | None:
        """What it has said; None once it has ended. It is to be called where there is something to read."""
        part = os.read(self.answers, 1 << 20)
        if not part:
            return None
        self.heard_s = time.monotonic()
        *lines, self._rest = (self._rest + part).split(b"\n")
        return [json.loads(line) for line in lines]

    def reap(self) -> int:
        """Kill it where it is still there; returns its exit status, negative for a signal."""
        os.kill(self.pid, signal.SIGKILL)  # one that has ended is still ours until we wait for it
        os.close(self.orders)
        os.close(self.answers)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become(
    work: Callable[[int, int], None], orders: int, answers: int, log: Path, others: Sequence[Process]
) -> None:
    """Be the process; never returns."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent ends us
        for other in others:
            os.close(other.orders)
            os.close(other.answers)
        logging.basicConfig(filename=log, force=True, format="%(asctime)s %(process)d %(message)s")
        faulthandler.register(signal.SIGUSR1, log.open("a"), all_threads=True)
        work(orders, answers)
        status = 0
    finally:
        os._exit(status)


class Sample(NamedTuple):
    """What memory a process has for itself, beside that of files, at a moment when it has no engine."""

    at_s: float
    own_bytes: int


class Member:
    """A place for a process, and what those that were in it have promised in the present world."""

    def __init__(self, slot: int, *, mortal: bool) -> None:
        self.slot, self.mortal = slot, mortal
        self.process: Process | None = None
        self.hit_at_s = 0.0
        self.goes_on_at_s: float | None = None  # while it stands still
        self.is_in_world = False
        self.durable: set[str] = set()
        self.gone: set[str] = set()
        self.samples: list[Sample] = []

    def enter(self, world: World) -> None:
        assert self.process is not None, "somebody enters"
        self.is_in_world = True
        self.process.tell(world=asdict(world))

    def hear(self, line: dict[str, Any]) -> None:
        """Take note of what it promises."""
        if "forgetting" in line:
            self.durable, self.gone = set(), set()
        self.gone.difference_update(line.get("storing", ()), line.get("removing", ()))
        self.durable.difference_update(line.get("removing", ()))
        self.gone.update(line.get("removed", ()))
        self.durable.update(line.get("durable", ()))
        if "own_bytes" in line:
            self.samples.append(Sample(line["at_s"], line["own_bytes"]))
        if "left" in line:
            self.is_in_world = False

    def growth_bytes_per_min(self) -> float | None:
        """The slope of its memory over the last half of its life; None where that is too short to say."""
        if not self.samples:
            return None
        half_s = self.samples[-1].at_s / 2
        late = [sample for sample in self.samples if sample.at_s >= half_s]
        if half_s < GROWTH_LEAST_S or len(late) < SAMPLES_LEAST:
            return None
        mean_s, mean_bytes = (sum(column) / len(late) for column in zip(*late, strict=True))
        spread = sum((sample.at_s - mean_s) ** 2 for sample in late)
        slope: float = (
            sum((sample.at_s - mean_s) * (sample.own_bytes - mean_bytes) for sample in late) / spread
        )
        return 60.0 * slope
