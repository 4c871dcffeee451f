"""A store or load that is cancelled at any of its awaits holds nothing afterwards, and nothing is wrong."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from chain_rig import BothFaces
from engine_rig import Device, config

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement.losses import calling
from kvtier.factory.composite import CompositeSpec
from kvtier.tiers.base import Outcome
from kvtier.tiers.device.gpu import GpuTier

KEYS = [b"key-%02d" % i for i in range(6)]
SETTLE_S = 10.0


async def cancelled_at(suspension: int, work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run `work`, and cancel it while it is suspended for the nth time.

    Raises:
        asyncio.CancelledError: it was cancelled there.
    """

    @types.coroutine
    def driven() -> Generator[Any, Any, Outcome]:
        task = asyncio.current_task()
        assert task is not None
        inner = work.__await__()
        error: BaseException | None = None
        for count in range(1 << 30):
            try:
                waited_for = inner.throw(error) if error is not None else next(inner)
            except StopIteration as end:
                result: Outcome = end.value
                return result
            if count == suspension:
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield waited_for
                error = None
            except BaseException as thrown:
                error = thrown
        raise AssertionError("a transfer suspends a bounded number of times")

    return await driven()


class Rig:
    """A chain of real tiers, without an engine around it."""

    def __init__(self, path: Path) -> None:
        self.loop = LoopThread()
        self.device = Device()
        self.gpu = GpuTier.of_tensors(self.device.tensors)
        self.spec = CompositeSpec.from_config(config(path, pinned_chunks=4))
        start = self.spec.start(part_bytes=self.gpu.part_bytes, parts=1, identity={"model": "tiny"})
        self.loop.submit(start).result(SETTLE_S)
        self.chain = BothFaces(self.spec.pinned, self.spec.lower, self.loop, load_deadlines_s={})

    def store(self, suspension: int) -> bool:
        """Store with a cancellation; returns whether it came to that."""
        for block, key in enumerate(KEYS):
            self.device.fill(block, key)
        return self._run(
            suspension, self.chain.store(self.gpu.blocks(KEYS, range(len(KEYS))), KEYS, calling())
        )

    def load(self, suspension: int) -> bool:
        self.device.wipe()
        return self._run(suspension, self.chain.load(self.gpu.blocks(KEYS, range(len(KEYS))), KEYS))

    def _run(self, suspension: int, work: Coroutine[Any, Any, Outcome]) -> bool:
        try:
            self.loop.submit(cancelled_at(suspension, work)).result(SETTLE_S)
        except CancelledError:
            return True
        return False

    def assert_idle(self) -> None:
        self.loop.submit(self.chain.mover.flush(None)).result(SETTLE_S)
        self.loop.submit(self._promotions_ended()).result(SETTLE_S)
        self.chain.check()
        assert self.chain.stats().pinned_slots == 0

    async def _promotions_ended(self) -> None:
        slots, _ = await self.chain.fetch(self.chain.new_prompt(), KEYS)
        self.chain.release(slots)

    def assert_all_loads(self) -> None:
        self.device.wipe()
        outcome = self.loop.submit(self.chain.load(self.gpu.blocks(KEYS, range(len(KEYS))), KEYS)).result(
            SETTLE_S
        )
        for block, key in enumerate(KEYS):
            assert self.device.holds(block, key) == (key in outcome.succeeded)

    def close(self) -> None:
        self.loop.submit(self.chain.mover.stop()).result(SETTLE_S)
        self.loop.submit(self.spec.close()).result(SETTLE_S)
        self.gpu.close_now()
        self.loop.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "nvme")
    yield rig
    rig.close()


def test_a_store_cancelled_at_any_await_holds_nothing(rig: Rig) -> None:
    suspension = 0
    while rig.store(suspension):
        rig.assert_idle()
        rig.chain.invalidate()
        suspension += 1
    assert suspension >= 3, "a store suspends more than once, or this test shows nothing"
    rig.assert_idle()
    rig.assert_all_loads()


def test_a_load_cancelled_at_any_await_holds_nothing(rig: Rig) -> None:
    assert not rig.store(1 << 20)
    suspension = 0
    while rig.load(suspension):
        rig.assert_idle()
        suspension += 1
    assert suspension >= 3, "a load suspends more than once, or this test shows nothing"
    rig.assert_idle()
    rig.assert_all_loads()
