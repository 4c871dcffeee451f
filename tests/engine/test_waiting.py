"""Who waits is woken when it is so: in the order of coming, and nobody else."""

from __future__ import annotations

import asyncio

from kvtier.engine.waiting import Waiting

TURNS = 20  # of the loop: more than any wake-up takes


class Room:
    """Places that tasks wait for and take."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.free = 0
        self.asked = 0
        self.served: list[int] = []

    async def take(self, number: int) -> None:
        await self.waiting.until(self._has_place)
        self.free -= 1
        self.served.append(number)

    def _has_place(self) -> bool:
        self.asked += 1
        return self.free > 0


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_what_is_so_already_is_not_waited_for() -> None:
    room = Room()
    room.free = 1
    await room.take(1)
    assert room.served == [1]


async def test_those_who_came_first_are_served_first_and_each_place_once() -> None:
    room = Room()
    tasks = [asyncio.ensure_future(room.take(number)) for number in range(4)]
    await turns()
    room.free = 1
    room.waiting.signal()
    await turns()
    assert room.served == [0]
    room.free = 2
    room.waiting.signal()
    late = asyncio.ensure_future(room.take(4))
    await turns()
    assert room.served == [0, 1, 2]
    room.free = 2
    room.waiting.signal()
    await asyncio.gather(*tasks, late)
    assert room.served == [0, 1, 2, 3, 4]
    assert room.free == 0


async def test_nobody_runs_for_what_is_not_so() -> None:
    room = Room()
    task = asyncio.ensure_future(room.take(1))
    await turns()
    asked = room.asked
    for _ in range(3):
        room.waiting.signal()
    await turns()
    assert room.asked == asked + 3, "it was asked at each signal, and its task did not run"
    room.free = 1
    room.waiting.signal()
    await task


async def test_one_who_gives_up_is_asked_no_more() -> None:
    room = Room()
    gone, other = (asyncio.ensure_future(room.take(number)) for number in range(2))
    await turns()
    gone.cancel()
    await turns()
    room.free = 1
    room.waiting.signal()
    await other
    assert gone.cancelled()
    assert room.served == [1]


async def test_one_who_gives_up_once_woken_leaves_the_place_to_the_next() -> None:
    room = Room()
    gone, other = (asyncio.ensure_future(room.take(number)) for number in range(2))
    await turns()
    room.free = 1
    room.waiting.signal()
    gone.cancel()
    await other
    assert room.served == [1]
