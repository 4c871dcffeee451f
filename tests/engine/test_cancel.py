"""A call that is cancelled at any of its awaits holds nothing afterwards, and nothing is wrong.

One of the tiers below fails now and then.
"""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from chain_rig import BothFaces
from engine_rig import Device, config

from kvtier.engine.loop import LoopThread
from kvtier.engine.movement.losses import calling
from kvtier.factory.composite import CompositeSpec
from kvtier.tiers.base import Buffer, Failure, Outcome, RemoveReason
from kvtier.tiers.breaker import Breaker
from kvtier.tiers.device.gpu import GpuTier
from kvtier.tiers.errors import TierError
from kvtier.tiers.testing import MemoryTier

KEYS = [b"key-%02d" % i for i in range(6)]
SETTLE_S = 30.0

T = TypeVar("T")


async def cancelled_at(suspension: int, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it while it is suspended for the nth time.

    Raises:
        asyncio.CancelledError: it was cancelled there.
    """

    @types.coroutine
    def driven() -> Generator[Any, Any, T]:
        task = asyncio.current_task()
        assert task is not None
        inner = work.__await__()
        error: BaseException | None = None
        for count in range(1 << 30):
            try:
                waited_for = inner.throw(error) if error is not None else next(inner)
            except StopIteration as end:
                result: T = end.value
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


class Fickle(MemoryTier):
    """A tier that answers after a turn of the loop; unless it is sound, every other call fails, in turn
    with a failure for each key and by raising."""

    def __init__(self) -> None:
        super().__init__("fickle")
        self.is_sound = False
        self._calls = itertools.count()

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        return await self._fails(keys) or await super().store(keys, buffers)

    async def load(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        return await self._fails(keys) or await super().load(keys, buffers)

    async def remove(self, keys: Sequence[bytes], reason: RemoveReason) -> None:
        await self._fails(keys)
        await super().remove(keys, reason)

    async def flush(self) -> None:
        await self._fails(())

    async def _fails(self, keys: Sequence[bytes]) -> Outcome | None:
        await asyncio.sleep(0)
        turn = 0 if self.is_sound else next(self._calls) % 4
        if turn == 3:
            raise ConnectionError("reset by peer")
        return Outcome(failed=dict.fromkeys(keys, Failure.IO_ERROR)) if turn == 1 else None


class Rig:
    """A chain of a real tier and one that fails, without an engine around it."""

    def __init__(self, path: Path) -> None:
        self.loop = LoopThread()
        self.device = Device()
        self.gpu = GpuTier.of_tensors(self.device.tensors)
        self.spec = CompositeSpec.from_config(config(path, pinned_chunks=4))
        start = self.spec.start(part_bytes=self.gpu.part_bytes, parts=1, identity={"model": "tiny"})
        self.loop.submit(start).result(SETTLE_S)
        self.fickle = Fickle()
        lower = [*self.spec.lower, Breaker(self.fickle, slow_s=SETTLE_S)]
        self.chain = BothFaces(self.spec.pinned, lower, self.loop, load_deadlines_s={})

    def store(self) -> Coroutine[Any, Any, Outcome]:
        for block, key in enumerate(KEYS):
            self.device.fill(block, key)
        return self.chain.store(self.gpu.blocks(KEYS, range(len(KEYS))), KEYS, calling())

    def load(self) -> Coroutine[Any, Any, Outcome]:
        self.device.wipe()
        return self.chain.load(self.gpu.blocks(KEYS, range(len(KEYS))), KEYS)

    def prefetch(self) -> Coroutine[Any, Any, Outcome]:
        return self.chain.prefetch(KEYS)

    def flush(self) -> Coroutine[Any, Any, None]:
        return self.chain.mover.flush(calling())

    def remove(self) -> Coroutine[Any, Any, None]:
        return self.chain.remove(KEYS)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What came of it; None where a tier failed, which the fickle one may."""
        with suppress(TierError):
            return self.loop.submit(work).result(SETTLE_S)
        return None

    def is_cancelled(self, suspension: int, work: Coroutine[Any, Any, Any]) -> bool:
        """Run it with a cancellation; returns whether it came to that."""
        try:
            self.run(cancelled_at(suspension, work))
        except CancelledError:
            return True
        return False

    def assert_idle(self) -> None:
        self.run(self.chain.mover.flush(None))
        self.run(self._promotions_ended())
        # What came from the last tier fills the one between, whose pin ends with that.
        self.run(self.chain.mover.until(lambda: not self.chain._placement.table.pinned_count))
        self.chain.check()

    async def _promotions_ended(self) -> None:
        slots, _ = await self.chain.fetch(self.chain.new_prompt(), KEYS)
        self.chain.release(slots)

    def assert_loads_are_right(self) -> Outcome:
        outcome: Outcome = self.run(self.load())
        for block, key in enumerate(KEYS):
            assert self.device.holds(block, key) == (key in outcome.succeeded)
        return outcome

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


@pytest.mark.parametrize(
    ("call", "least"),
    [(Rig.store, 3), (Rig.load, 3), (Rig.prefetch, 1), (Rig.flush, 1), (Rig.remove, 2)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_call_cancelled_at_any_await_holds_nothing_and_the_chain_goes_on(
    rig: Rig, call: Callable[[Rig], Coroutine[Any, Any, Any]], least: int
) -> None:
    suspension, is_cancelled = 0, True
    while is_cancelled:
        if call is not Rig.store:
            rig.run(rig.store())  # there are more of them than slots: some lie only below
        is_cancelled = rig.is_cancelled(suspension, call(rig))
        rig.assert_idle()
        rig.assert_loads_are_right()
        if call is Rig.store:
            rig.chain.invalidate()
        suspension += 1
    assert suspension > least, "it suspends more than once, or this test shows nothing"
    rig.fickle.is_sound = True
    rig.run(rig.store())
    assert rig.assert_loads_are_right().succeeded == tuple(KEYS)
    rig.assert_idle()
