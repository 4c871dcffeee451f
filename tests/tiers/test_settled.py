import asyncio

import pytest

from kvtier.tiers.settled import happened, settled


class Gated:
    """Work that ends when its gate opens, with `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = asyncio.Event()
        self.ended = False
        self._error = error

    async def run(self) -> str:
        await self.gate.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "done"


async def begun(work: Gated, **options: object) -> asyncio.Task[str]:
    task = asyncio.create_task(settled(work.run(), **options))  # type: ignore[arg-type]  # one option
    await asyncio.sleep(0)
    return task


async def test_work_that_nobody_cancels_returns_its_result() -> None:
    work = Gated()
    task = await begun(work)
    work.gate.set()
    assert await task == "done"


async def test_a_cancellation_waits_for_the_work_however_often_it_comes() -> None:
    work, told = Gated(), []
    task = await begun(work, on_cancel=lambda: told.append("cancelled"))
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    work.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended
    assert told == ["cancelled"]


async def test_an_error_reaches_the_caller() -> None:
    work = Gated(ValueError("no"))
    task = await begun(work)
    work.gate.set()
    with pytest.raises(ValueError, match="no"):
        await task


async def test_an_error_after_a_cancellation_stays_silent() -> None:
    work = Gated(ValueError("too late"))
    task = await begun(work)
    task.cancel()
    await asyncio.sleep(0)
    work.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_event_is_waited_for_however_often_that_is_cancelled() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(happened(event))
    for _ in range(3):
        await asyncio.sleep(0)
        for one in asyncio.all_tasks() - {asyncio.current_task()}:  # as a loop does that ends
            one.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await happened(event)
