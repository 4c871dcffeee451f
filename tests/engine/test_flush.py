"""What a flush says is true for whoever calls it, and nothing swallows a loss."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from chain_rig import Rig, rigged
from lifetime_rig import WAIT_S, Disk, Spec, opened

from kvtier.engine.engine import OffloadEngine
from kvtier.engine.movement.losses import calling
from kvtier.tiers.base import Buffer, Failure, Outcome
from kvtier.tiers.errors import KvtierError, NotDurable, TierError

NOW_S = 0.05  # a time-out that a test waits for

LOSSES: dict[str, Failure | Exception] = {
    "io_error": Failure.IO_ERROR,
    "index_full": Failure.INDEX_FULL,
    "breaker open": Failure.DROPPED,
    "raises": OSError("gone"),
}


class BadDisk(Disk):
    """A disk that takes nothing while there is a reason."""

    why: Failure | Exception | None = None

    async def store(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> Outcome:
        outcome = await super().store(keys, buffers)
        if self.why is None:
            return outcome
        for key in keys:
            del self.chunks[key]
        if isinstance(self.why, Exception):
            raise self.why
        return Outcome(failed=dict.fromkeys(keys, self.why))


class Bad:
    """An engine over a disk that fails."""

    def __init__(self, why: Failure | Exception) -> None:
        spec = Spec()
        self.disk = spec.disk = BadDisk()
        self.disk.why = why
        self.engine: OffloadEngine = opened(spec)

    def store(self, *keys: bytes) -> None:
        assert self.engine.store(keys, range(len(keys))).wait(WAIT_S).succeeded == keys

    def lost(self) -> set[bytes]:
        """What a flush by this caller says is not durable."""
        try:
            self.engine.flush(WAIT_S)
        except NotDurable as error:
            return set(error.keys)
        return set()


@pytest.fixture(params=LOSSES)
def bad(request: pytest.FixtureRequest) -> Iterator[Bad]:
    bad = Bad(LOSSES[request.param])
    yield bad
    bad.disk.lets_go.set()
    bad.engine.close()


def in_threads(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)


def test_a_flush_names_what_is_not_durable_once(bad: Bad) -> None:
    bad.store(b"a", b"b")
    assert bad.lost() == {b"a", b"b"}
    assert bad.lost() == set()


def test_a_flush_that_timed_out_swallows_no_loss(bad: Bad) -> None:
    bad.disk.lets_go.clear()
    bad.store(b"a")
    for _ in range(2):
        with pytest.raises(TimeoutError):
            bad.engine.flush(NOW_S)
    bad.disk.lets_go.set()
    assert bad.lost() == {b"a"}


def test_a_flush_whose_result_nobody_fetched_swallows_no_loss(bad: Bad) -> None:
    bad.store(b"a")
    bad.engine.flushing().wait_ended()
    assert bad.lost() == {b"a"}


def test_each_of_two_threads_is_told(bad: Bad) -> None:
    told: dict[bytes, set[bytes]] = {}
    stored = threading.Barrier(2)

    def work(key: bytes) -> None:
        bad.store(key)
        stored.wait(WAIT_S)
        told[key] = bad.lost()

    in_threads(lambda: work(b"x"), lambda: work(b"y"))
    assert all(key in lost for key, lost in told.items()), "and of the other's, if it was stored later"


def test_each_of_two_tasks_is_told(bad: Bad) -> None:
    async def work(key: bytes, stored: asyncio.Barrier) -> None:
        await bad.engine.store([key], [0])
        await stored.wait()
        with pytest.raises(NotDurable) as caught:
            await bad.engine.flushing()
        await bad.engine.flushing()  # told once
        assert key in caught.value.keys

    async def run() -> None:
        stored = asyncio.Barrier(2)
        await asyncio.gather(work(b"x", stored), work(b"y", stored))

    asyncio.run(run())


def test_a_flush_before_the_loss_says_nothing_of_it_and_the_next_one_does(bad: Bad) -> None:
    bad.engine.flush(WAIT_S)
    bad.store(b"a")
    assert bad.lost() == {b"a"}


def test_a_chunk_that_was_lost_can_be_stored_again(bad: Bad) -> None:
    bad.store(b"a")
    assert bad.lost() == {b"a"}
    bad.disk.why = None
    bad.store(b"a")
    assert bad.lost() == set()
    assert set(bad.disk.chunks) == {b"a"}


def test_a_chunk_that_is_stored_again_and_lost_again_is_told_again(bad: Bad) -> None:
    for _ in range(2):
        bad.store(b"a")
        assert bad.lost() == {b"a"}


def test_a_removed_chunk_is_missed_by_nobody(bad: Bad) -> None:
    bad.store(b"a", b"b")
    bad.engine.remove([b"a"]).wait(WAIT_S)
    assert bad.lost() == {b"b"}


def test_what_close_gave_up_is_told_to_who_waits_in_another_thread() -> None:
    spec = Spec()
    engine = opened(spec)
    spec.disk.lets_go.clear()
    engine.store([b"a", b"b"], [0, 1]).wait(WAIT_S)
    assert spec.disk.stores.wait(WAIT_S)
    told: list[BaseException] = []

    def flush() -> None:
        try:
            engine.flush(WAIT_S)
        except BaseException as error:
            told.append(error)

    waiting = threading.Thread(target=flush)
    waiting.start()
    chain = engine._lifetime.ready().chain
    flushed = chain._loop.submit(_until(lambda: chain.mover._urgent > 0))
    flushed.result(WAIT_S)  # it waits by now
    threading.Timer(2 * NOW_S, spec.disk.lets_go.set).start()
    engine.close(timeout=NOW_S)
    waiting.join(WAIT_S)
    (error,) = told
    assert isinstance(error, NotDurable)
    assert error.reasons == {Failure.CLOSED: 2}
    assert not spec.disk.chunks


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - another task brings it about
        await asyncio.sleep(0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from rigged(4)


def test_what_was_evicted_on_its_way_down_is_told(rig: Rig) -> None:
    rig.gate(opened=False)
    rig.put([b"a", b"b", b"c", b"d"])
    rig.put([b"e", b"f"])  # in the place of two that wait
    rig.gate(opened=True)
    with pytest.raises(NotDurable) as caught:
        rig.loop.submit(rig.chain.mover.flush(calling())).result(WAIT_S)
    assert set(caught.value.keys) == {b"c", b"d"}
    assert caught.value.reasons == {Failure.DROPPED: 2}
    assert set(rig.lower.chunks) == {b"a", b"b", b"e", b"f"}


def test_a_failed_flush_of_a_tier_takes_no_loss_with_it(rig: Rig) -> None:
    async def refuses() -> None:
        raise TierError("memory", "no sync")

    rig.gate(opened=False)
    rig.put([b"a", b"b", b"c", b"d"])
    rig.put([b"e", b"f"])
    rig.gate(opened=True)
    caller, flush = calling(), rig.lower.flush
    rig.lower.flush = refuses  # type: ignore[method-assign]
    with pytest.raises(KvtierError, match="no sync"):
        rig.loop.submit(rig.chain.mover.flush(caller)).result(WAIT_S)
    rig.lower.flush = flush  # type: ignore[method-assign]
    with pytest.raises(NotDurable):
        rig.loop.submit(rig.chain.mover.flush(caller)).result(WAIT_S)
