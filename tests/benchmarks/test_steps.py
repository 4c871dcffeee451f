"""How the step benchmark sums up calls and puts the processes of a server together."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

steps = pytest.importorskip("steps", reason="the benchmark is not part of the package")


class Clock:
    """Goes on when it is told to; nanoseconds. A core is had for half of the time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def wall(self) -> int:
        return self.now_ns

    def cpu(self) -> int:
        return self.now_ns // 2

    def work(self, ns: int) -> None:
        self.now_ns += ns


def lines_of(use: Callable[[Any, Clock], None]) -> list[dict[str, Any]]:
    file, clock = io.StringIO(), Clock()
    use(steps.StepLog(file, clock.wall, clock.cpu), clock)
    return [json.loads(line) for line in file.getvalue().splitlines()]


def took(use: Callable[[Any, Clock], None]) -> list[dict[str, int]]:
    return [line["took_ns"] for line in lines_of(use)]


def written(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_calls_are_summed_by_name_and_each_step_begins_at_zero() -> None:
    def use(log: Any, clock: Clock) -> None:
        log.timed("lookup", clock.work, 4)
        clock.work(1000)  # between two calls: nobody's
        log.timed("store", clock.work, 2)
        log.timed("lookup", clock.work, 6)
        log.end(1, running=2)
        log.timed("lookup", clock.work, 8)
        log.end(2)

    assert lines_of(use) == [
        {
            "step": 1,
            "took_ns": {"lookup": 10, "store": 2},
            "cpu_ns": {"lookup": 5, "store": 1},
            "running": 2,
        },
        {"step": 2, "took_ns": {"lookup": 8}, "cpu_ns": {"lookup": 4}},
    ]


def test_a_call_within_a_call_counts_once() -> None:
    def use(log: Any, clock: Clock) -> None:
        def outer() -> None:
            clock.work(1)
            log.timed("inner", clock.work, 2)

        log.timed("outer", outer)
        log.end(1)

    assert took(use) == [{"outer": 3}]


def test_a_call_that_raises_counts_and_the_next_one_does_too() -> None:
    def use(log: Any, clock: Clock) -> None:
        def fail() -> None:
            clock.work(2)
            raise KeyError("nothing there")

        with pytest.raises(KeyError):
            log.timed("lookup", fail)
        log.timed("lookup", clock.work, 1)
        log.end(1)

    assert took(use) == [{"lookup": 3}]


def test_a_call_returns_what_it_returns() -> None:
    clock = Clock()
    log = steps.StepLog(io.StringIO(), clock.wall, clock.cpu)
    assert log.timed("lookup", dict, [("a", 1)], b=2) == {"a": 1, "b": 2}


def test_processes_are_put_together_by_the_number_of_the_step(tmp_path: Path) -> None:
    ms = steps.NS_PER_MS
    written(
        tmp_path / "scheduler.jsonl",
        {
            "step": 1,
            "took_ns": {"schedule": 4 * ms},
            "cpu_ns": {"schedule": ms},
            "began_ns": 0,
            "running": 3,
            "waiting": 1,
        },
        {"step": 2, "took_ns": {}, "cpu_ns": {}, "began_ns": 9 * ms, "running": 3, "waiting": 0},
        {"step": 3, "took_ns": {}, "cpu_ns": {}, "began_ns": 11 * ms, "running": 0, "waiting": 0},
    )
    written(
        tmp_path / "connector-scheduler.jsonl",
        {"step": 2, "took_ns": {"match": 5 * ms, "stats": ms}, "cpu_ns": {"match": ms}},
    )
    written(
        tmp_path / "connector-worker.jsonl",
        {"step": 2, "took_ns": {"stats": 2 * ms}, "cpu_ns": {"stats": ms}},
    )
    written(
        tmp_path / "plugin-scheduler.jsonl",
        {"step": 2, "took_ns": {"lookup": 3 * ms}, "cpu_ns": {"lookup": ms}},
    )
    written(tmp_path / "plugin-worker.jsonl", {"step": 2, "took_ns": {"submit": 2 * ms}, "cpu_ns": {}})
    none = steps.Calls({}, {})
    assert steps.read_steps(tmp_path) == [
        steps.Step(
            9,
            steps.Calls({"schedule": 4}, {"schedule": 1}),
            connector=none,
            manager=none,
            worker=none,
            running=3,
            waiting=1,
        ),
        steps.Step(
            2,
            none,
            steps.Calls({"match": 5, "stats": 3}, {"match": 1, "stats": 1}),
            manager=steps.Calls({"lookup": 3}, {"lookup": 1}),
            worker=steps.Calls({"submit": 2}, {}),
            running=3,
            waiting=0,
        ),
    ]
    assert steps.read_steps(tmp_path)[1].connector.total_ms == 8


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1), (98.5, 99)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: int) -> None:
    assert steps.percentile(range(100, 0, -1), percent) == expected
