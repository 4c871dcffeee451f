"""How an engine ends while others wait for it, and jobs that wait for their turn."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lifetime_rig import BLOCKS, SHORT_S, WAIT_S, Call, Disk, Spec, opened

from kvtier.engine import Job, OffloadEngine, lifetime, loop
from kvtier.engine.library import LibraryChain
from kvtier.engine.lifetime import Kind
from kvtier.tiers.base import Buffer, Failure, Outcome, RemoveReason
from kvtier.tiers.errors import ClosedError, KvtierError
from kvtier.tiers.settled import settled


@pytest.mark.parametrize("timeout", [None, 0, -1, 30.0])
def test_a_close_takes_any_timeout_and_closes_the_tiers(
    spec: Spec, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(spec)
    keys = [b"k%d" % block for block in range(BLOCKS)]
    engine.store(keys, range(BLOCKS)).wait(WAIT_S)
    engine.close(timeout)
    assert spec.disk.closed.is_set()
    assert "did not close cleanly" not in caplog.text
    if timeout is None or timeout > 0:
        assert set(spec.disk.chunks) == set(keys)
        assert caplog.text == ""


def test_jobs_beyond_those_that_run_wait_for_their_turn_in_order(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "JOBS_RUNNING_MAX", 2)
    engine = opened(spec)
    began: list[int] = []
    ends = threading.Event()

    def job(number: int) -> Job[Outcome]:
        async def work(chain: LibraryChain) -> Outcome:
            began.append(number)
            await settled(asyncio.to_thread(ends.wait, WAIT_S))
            return Outcome()

        return engine._lifetime.move(Kind.STORE, work, chunks=1, shed=Outcome)

    jobs = [job(number) for number in range(20)]
    engine._lifetime.run(lambda chain: asyncio.sleep(0)).wait(WAIT_S)  # the loop has been round
    assert began == [0, 1]
    jobs[5].cancel()
    ends.set()
    for number, one in enumerate(jobs):
        one.wait_ended()
        assert one.done()
        assert number == 5 or one.wait(WAIT_S) == Outcome()
    assert began == [number for number in range(20) if number != 5]
    engine.close()


def test_a_burst_of_jobs_all_succeed_or_are_counted(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "JOBS_RUNNING_MAX", 3)
    engine = opened(spec)
    jobs = [engine.store([b"%d" % number], [number % BLOCKS]) for number in range(300)]
    assert [job.wait(WAIT_S).succeeded for job in jobs] == [(b"%d" % number,) for number in range(300)]
    assert "shed_chunks" not in {k for k, v in engine.stats().tiers["pinned"].counters.items() if v}
    monkeypatch.setattr(lifetime, "JOBS_MAX", 4)
    spec.disk.lets_go.clear()
    chain = engine._lifetime.ready().chain
    loads = [engine.load([b"l%d" % number, b"m%d" % number], [0, 1]) for number in range(50)]
    shed = [job for job in loads if Failure.DROPPED in job.wait(WAIT_S).failed.values()]
    assert engine.stats().tiers["pinned"].counters.get("shed_chunks", 0) == 2 * len(shed)
    spec.disk.lets_go.set()
    assert chain is engine._lifetime.ready().chain
    engine.close()


class Waiting(NamedTuple):
    """A way to wait for something of an engine, over a disk that never answers."""

    name: str
    wait: Callable[[OffloadEngine], Any]


async def _awaited(job: Job[Any]) -> Any:
    return await job


WAYS = [
    Waiting("flush", lambda engine: engine.flush()),
    Waiting("await flushing", lambda engine: asyncio.run(_awaited(engine.flushing()))),
    Waiting("remove", lambda engine: engine.remove([b"a"]).wait()),
]


class Held(Disk):
    """A disk whose every call lasts until it is cancelled."""

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        self.stores.set()
        await asyncio.Event().wait()
        raise AssertionError("it never comes")

    async def flush(self) -> None:
        await asyncio.Event().wait()

    async def remove(self, keys: Sequence[bytes], reason: RemoveReason) -> None:
        await asyncio.Event().wait()


@pytest.mark.usefixtures("_short_steps")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_who_waits_while_another_thread_closes_learns_that_it_was_closed(way: Waiting) -> None:
    spec = Spec()
    spec.disk = Held()
    engine = opened(spec)
    engine.store([b"a"], [0]).wait(WAIT_S)
    assert spec.disk.stores.wait(WAIT_S)
    jobs = engine._lifetime._jobs
    waits = Call(way.wait, engine)
    while not jobs:  # the call has begun
        time.sleep(0)
    engine.close(SHORT_S)
    assert isinstance(waits.end(), KvtierError)


@pytest.mark.usefixtures("_short_steps")
def test_a_job_that_is_cut_short_by_a_close_says_so(spec: Spec) -> None:
    spec.load_deadlines_s = {"disk": 60 * WAIT_S}
    engine = opened(spec)
    chain = engine._lifetime.ready().chain
    held = chain.reserve(chain.new_prompt(), [b"held-%d" % i for i in range(8)]).slots
    job = engine.store([b"a"], [0])  # waits for a slot
    engine.close(SHORT_S)
    with pytest.raises(ClosedError):
        job.wait(WAIT_S)
    chain.abandon(held)


STUCK = """
import sys, threading
sys.path.insert(0, {support!r})
import lifetime_rig
from lifetime_rig import Spec, opened
from kvtier.engine import lifetime, loop

lifetime.STEP_S = lifetime.TIERS_S = loop.JOIN_S = 0.05
lifetime_rig.WAIT_S = 1e6
spec = Spec()
engine = opened(spec)
spec.disk.lets_go.clear()
engine.store([b"a"], [0]).wait(10)
assert spec.disk.stores.wait(10)
engine.close(0.05)
print("closed", flush=True)
"""


@pytest.mark.slow
def test_a_process_ends_though_a_call_of_a_tier_never_does() -> None:
    """Such a tier of another package waits in a thread of the loop's own executor."""
    script = STUCK.format(support=str(Path(__file__).parents[1] / "support"))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    assert ended.stdout == "closed\n"


def test_the_steps_of_an_end_over_a_stuck_drive_take_some_seconds_in_all() -> None:
    """The movement does not end, the loop's thread is left behind, and all others are quick."""
    assert lifetime.STEP_S + loop.JOIN_S <= 8
