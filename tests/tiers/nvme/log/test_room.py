"""Decisions about segments in a store of 30 TiB: what each costs does not go with how many there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, MIB

from kvtier.tiers.nvme.index.records import STANDING, Segment, SegmentState, decode_segment
from kvtier.tiers.nvme.index.transaction import Transaction
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.events import Events
from kvtier.tiers.nvme.log.lifecycle import Log
from kvtier.tiers.nvme.store.opening import Store, close_store, open_store

pytestmark = pytest.mark.slow

TRANSACTION = "kvtier.tiers.nvme.index.transaction"
SEGMENTS = 122_880
STEP = 4096
OTHERS = 4  # processes that each append to one
LOOKS_MAX = 64  # at records and ages: some candidates, and what is open
SECONDS_MAX = 0.01  # of thread time; a tenth of it is the aim
FIRST_FREE, FIRST_OPEN, FIRST_SEALED = 1, 1000, 2000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = open_store(
        Files(),
        tmp_path_factory.mktemp("large") / "store",
        capacity_bytes=2000 * MIB,
        reserve_bytes=0,
        identity=IDENTITY,
        chunk_bytes=CHUNK_BYTES,
    )
    for first in range(1, SEGMENTS + 1, STEP):
        store.index.write(lambda txn, first=first: fill(txn, first))  # type: ignore[misc]
    for number in (FIRST_FREE, FIRST_FREE + 1, FIRST_SEALED, FIRST_SEALED + 1):
        store.directory.segments.path(number).touch(0o600)
    store.index.write(lambda txn: txn.set_number("segment", SEGMENTS))
    yield store
    close_store(store)


def fill(txn: Transaction, first: int) -> None:
    for number in range(first, min(first + STEP, SEGMENTS + 1)):
        state = SegmentState.SEALED
        if number < FIRST_OPEN:
            state = SegmentState.FREE
        elif number < FIRST_OPEN + OTHERS:
            state = SegmentState.OPEN
        txn.put_segment(number, Segment(state, 1, number, 65536, 0, 0, 256 * MIB))


@pytest.fixture
def log(store: Store) -> Iterator[Log]:
    segments, held = store.directory.segments, list[int]()
    for number in range(FIRST_OPEN, FIRST_OPEN + OTHERS):
        segments.path(number).touch(0o600)
        fd = segments.claim(number)
        assert fd is not None
        held.append(fd)
    yield Log(segments, store.index, Events())
    for fd in held:
        segments.files.close(fd)


def set_cap(store: Store, capacity_bytes: int) -> None:
    store.index.write(lambda txn: txn.set_number("capacity_bytes", capacity_bytes))


def claim(log: Log) -> None:
    """The decision alone: what a segment's file holds is read afterwards."""
    found = log._claim_one()
    assert found is not None
    assert found.number < FIRST_OPEN
    log._close(found.number, found.fd)


def reclaim(log: Log) -> None:
    victim = next(log.victims._oldest())
    log.victims.abandon(victim)


DECISIONS: dict[str, Callable[[Log], object]] = {
    "excess": lambda log: log.room.excess_bytes(),
    "plan": lambda log: log.room.plan(),
    "claim": claim,
    "take over": claim,  # what the one before has left open
    "reclaim": reclaim,
    "flush": lambda log: log.sync_others(set()),
    "shrink": lambda log: log.room.shrink(),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_looks_at_few_records(
    store: Store, log: Log, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    set_cap(store, 1 << 50)
    looks = list[object]()

    def looked(real: Callable[[bytes], Any], raw: bytes) -> Any:
        looks.append(raw)
        return real(raw)

    class Standing:
        pack = staticmethod(STANDING.pack)
        unpack = staticmethod(partial(looked, STANDING.unpack))

    with monkeypatch.context() as patched:
        patched.setattr(f"{TRANSACTION}.decode_segment", partial(looked, decode_segment))
        patched.setattr(f"{TRANSACTION}.STANDING", Standing)
        began_s = time.thread_time()
        DECISIONS[name](log)
        took_s = time.thread_time() - began_s
    print(f"{name}: {len(looks)} looks, {1000 * took_s:.2f} ms")
    assert len(looks) <= LOOKS_MAX
    assert took_s <= SECONDS_MAX
