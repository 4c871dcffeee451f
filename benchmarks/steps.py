"""Times of calls, summed over each of a server's steps, and what is made of them afterwards."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NS_PER_MS = 1_000_000


class StepLog:
    """Sums up what calls take in one process and writes a line a step; one thread.

    A call within another one counts as a part of that: only the outermost is summed.

    Args:
        file: where the lines go; outside the drive that is measured.
        wall: nanoseconds on the wall.
        cpu: nanoseconds of this thread on a core.
    """

    def __init__(self, file: IO[str], wall: Callable[[], int], cpu: Callable[[], int]) -> None:
        self._file = file
        self._wall = wall
        self._cpu = cpu
        # Mutable state:
        self._took_ns: Counter[str] = Counter()
        self._cpu_ns: Counter[str] = Counter()
        self._depth = 0

    def timed(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call and add what it takes to the step under way."""
        self._depth += 1
        began_ns, began_cpu_ns = self._wall(), self._cpu()
        try:
            return call(*args, **kwargs)
        finally:
            took_ns, cpu_ns = self._wall() - began_ns, self._cpu() - began_cpu_ns
            self._depth -= 1
            if not self._depth:
                self._took_ns[name] += took_ns
                self._cpu_ns[name] += cpu_ns

    def end(self, step: int, **facts: int) -> None:
        """Write down what was summed as that of this step, and begin anew."""
        line = {"step": step, "took_ns": self._took_ns, "cpu_ns": self._cpu_ns, **facts}
        self._file.write(json.dumps(line) + "\n")
        self._took_ns, self._cpu_ns = Counter(), Counter()


@dataclass(frozen=True, slots=True)
class Calls:
    """What a step's calls of one kind took, in all processes.

    Attributes:
        took_ms: on the wall, by name.
        cpu_ms: on a core, by name.
    """

    took_ms: Mapping[str, float]
    cpu_ms: Mapping[str, float]

    @property
    def total_ms(self) -> float:
        """On the wall, together."""
        return sum(self.took_ms.values())

    @property
    def total_cpu_ms(self) -> float:
        """On a core, together."""
        return sum(self.cpu_ms.values())


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a server took.

    Attributes:
        length_ms: from the beginning of this step to that of the next one.
        scheduler: the scheduler's own work, calls into the connector included.
        connector: calls into the connector, in the scheduler and in the worker.
        manager: the calls among these that went on into the plugin, in the scheduler.
        worker: likewise in the worker.
        running: requests that run.
        waiting: requests that wait.
    """

    length_ms: float
    scheduler: Calls
    connector: Calls
    manager: Calls
    worker: Calls
    running: int
    waiting: int


def read_steps(directory: Path) -> list[Step]:
    """Put together what the processes of a server wrote, step by step; the last step has no end."""
    scheduler, connector, manager, worker = (
        _read_calls(directory.glob(f"{logs}.jsonl"))
        for logs in ("scheduler", "connector-*", "plugin-scheduler", "plugin-worker")
    )
    none = Calls({}, {})
    return [
        Step(
            length_ms=(following["began_ns"] - line["began_ns"]) / NS_PER_MS,
            scheduler=scheduler[line["step"]],
            connector=connector.get(line["step"], none),
            manager=manager.get(line["step"], none),
            worker=worker.get(line["step"], none),
            running=line["running"],
            waiting=line["waiting"],
        )
        for line, following in itertools.pairwise(_lines(directory / "scheduler.jsonl"))
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many per cent of them do not exceed."""
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(0, rank - 1)]


def _read_calls(paths: Iterable[Path]) -> dict[int, Calls]:
    took_ns: defaultdict[int, Counter[str]] = defaultdict(Counter)
    cpu_ns: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for path in paths:
        for line in _lines(path):
            took_ns[line["step"]].update(line["took_ns"])
            cpu_ns[line["step"]].update(line["cpu_ns"])
    return {step: Calls(_ms(by_name), _ms(cpu_ns[step])) for step, by_name in took_ns.items()}


def _ms(by_name: Mapping[str, int]) -> dict[str, float]:
    return {name: ns / NS_PER_MS for name, ns in by_name.items()}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
