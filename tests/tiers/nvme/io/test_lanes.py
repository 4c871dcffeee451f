from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from kvtier.tiers.nvme.io.lanes import LOAD_LANES, Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()


async def test_every_piece_runs_once_and_on_a_lane(lanes: Lanes) -> None:
    ran: list[tuple[int, str]] = []
    pieces = [lambda i=i: ran.append((i, threading.current_thread().name)) for i in range(50)]
    await lanes.load(pieces)
    await lanes.store(pieces, then=lambda: None)
    assert sorted(number for number, _ in ran) == sorted([*range(50), *range(50)])
    assert {name.rpartition("_")[0] for _, name in ran} == {"kvtier-load", "kvtier-store"}


async def test_the_index_has_one_thread(lanes: Lanes) -> None:
    names = await asyncio.gather(*(lanes.index(threading.get_ident) for _ in range(8)))
    assert len(set(names)) == 1


async def test_nothing_to_do_is_done(lanes: Lanes) -> None:
    await lanes.load([])
    await lanes.store([], then=lambda: None)


async def test_a_failing_piece_is_raised_after_all_lanes_have_ended(lanes: Lanes) -> None:
    running = threading.Semaphore(0)

    def bad() -> None:
        running.release()
        raise ValueError("bad piece")

    with pytest.raises(ValueError, match="bad piece"):
        await lanes.load([bad, *([running.release] * 7)])
    assert all(running.acquire(blocking=False) for _ in range(8))


async def test_a_cancelled_call_returns_only_when_its_threads_are_done(lanes: Lanes) -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()
    left: list[int] = []

    def piece() -> None:
        started.set()
        release.wait()
        ended.set()

    task = asyncio.create_task(lanes.load([piece] * LOAD_LANES + [lambda: left.append(1)] * 4))
    await asyncio.to_thread(started.wait)
    for _ in range(3):  # however often it is cancelled
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert not left


async def test_what_comes_after_a_store_comes_after_all_its_pieces(lanes: Lanes) -> None:
    order: list[str] = []

    def slow() -> None:
        time.sleep(0.02)
        order.append("piece")

    def then() -> int:
        order.append("then")
        return 7

    assert await lanes.store([slow] * 20, then=then) == 7
    assert order == ["piece"] * 20 + ["then"]


async def test_what_comes_after_a_cancelled_store_does_not_come(lanes: Lanes) -> None:
    started, release = threading.Event(), threading.Event()
    told: list[str] = []

    def piece() -> None:
        started.set()
        release.wait()

    task = asyncio.create_task(lanes.store([piece], then=lambda: told.append("then")))
    await asyncio.to_thread(started.wait)
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not told


async def test_stores_stand_aside_while_loads_are_under_way(lanes: Lanes) -> None:
    started, release = threading.Event(), threading.Event()

    def loading() -> None:
        started.set()
        release.wait()

    load = asyncio.create_task(lanes.load([loading]))
    await asyncio.to_thread(started.wait)
    assert not lanes._quiet.is_set()
    await lanes.store([lambda: None], then=lambda: None)  # a bounded while: not until the load has ended
    release.set()
    await load
    assert lanes._quiet.is_set()
