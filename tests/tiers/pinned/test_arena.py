import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arena_child import PART_BYTES, ArenaChild, share

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.pinned import arena as arena_module
from kvtier.tiers.pinned import memory
from kvtier.tiers.pinned.arena import Arena, _CudaRegistrar
from kvtier.tiers.pinned.arenafile import arena_path
from kvtier.tiers.pinned.memory import Room
from kvtier.tiers.pinned.pinning import Piece

LAST_COUNT = 2**32 - 1


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{os.getpid()}-{request.node.name}"
    yield name
    arena_path(name).unlink(missing_ok=True)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.private(slot_count=4, part_bytes=PART_BYTES, parts=2)
    yield arena
    arena.close()


def slots(*indexes: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.array(indexes, np.int64)


def test_a_note_is_there_for_every_process_of_the_server() -> None:
    name = f"test-{uuid.uuid4()}"
    first = Arena.shared(name, 2, 4096, 1, mappers=3, ranks=1)
    second = Arena.shared(name, 2, 4096, 1, mappers=3, ranks=1)
    try:
        assert second.note == b""
        first.note = b"word"
        assert second.note == b"word"
        first.note = b""
        assert second.note == b""
    finally:
        first.close()
        second.close()


def test_each_part_starts_on_4_kib_and_slots_lie_side_by_side(arena: Arena) -> None:
    assert (arena.slot_count, arena.part_bytes, arena.slot_bytes) == (4, PART_BYTES, 2 * 8192)
    first, second = arena.part_address(slots(0, 3), 0), arena.part_address(slots(0, 3), 1)
    assert first.dtype == np.int64
    assert not (first % 4096).any()
    assert (second - first).tolist() == [8192, 8192]
    assert first[1] - first[0] == 3 * arena.slot_bytes


def test_a_buffer_is_the_slot_that_the_addresses_name(arena: Arena) -> None:
    buffer = arena.buffer(2)
    buffer[8192] = 7
    assert (buffer.format, buffer.nbytes, buffer.readonly) == ("B", arena.slot_bytes, False)
    assert np.frombuffer(buffer, np.uint8).ctypes.data == arena.part_address(slots(2), 0)[0]
    assert set(arena.buffer(1)) == set(arena.buffer(3)) == {0}


def test_a_slot_beyond_the_arena_is_our_own_mistake(arena: Arena) -> None:
    with pytest.raises(AssertionError):
        arena.buffer(4)
    with pytest.raises(AssertionError):
        arena.part_address(slots(0), 2)


def test_transfers_are_done_when_every_rank_has_counted_them(arena: Arena) -> None:
    assert arena.transfers_done(1, stores=0, loads=0)
    arena.store_ended(slots(1, 2), 0, failed=False)
    assert not arena.transfers_done(1, stores=1, loads=0)
    arena.store_ended(slots(1, 2), 1, failed=False)
    assert arena.transfers_done(1, stores=1, loads=0)
    arena.load_ended(slots(1), 0)
    arena.load_ended(slots(1), 1)
    assert arena.transfers_done(1, stores=1, loads=1)
    assert arena.transfers_done(2, stores=1, loads=0)
    assert arena.transfers_done(0, stores=0, loads=0)


def test_a_slot_named_twice_in_a_load_counts_twice(arena: Arena) -> None:
    for rank in (0, 1):
        arena.load_ended(slots(3, 3), rank)
    assert arena.transfers_done(3, stores=0, loads=2)


def test_many_slots_at_a_time_are_marked_as_few_are(monkeypatch: pytest.MonkeyPatch, arena: Arena) -> None:
    marks = []
    for few_slots in (0, 128):
        monkeypatch.setattr(arena_module, "FEW_SLOTS", few_slots)
        views = arena._open()
        for view in (views.stores_done, views.loads_done):
            view[:] = LAST_COUNT
        views.store_failed[:] = 0
        arena.store_ended(slots(1, 2), 0, failed=True)
        arena.store_ended(slots(2), 0, failed=False)
        arena.load_ended(slots(3, 3, 1), 1)
        marks.append([view.tolist() for view in (views.stores_done, views.loads_done, views.store_failed)])
    assert marks[0] == marks[1]
    assert arena.stores_failed([0, 1, 2]) == [False, True, False]


def test_counts_wrap_with_those_of_the_scheduler(arena: Arena) -> None:
    for counts in (arena._open().stores_done, arena._open().loads_done):
        counts[:] = LAST_COUNT
    assert arena.transfers_done(0, stores=LAST_COUNT, loads=LAST_COUNT)
    for rank in (0, 1):
        arena.store_ended(slots(0), rank, failed=False)
        arena.load_ended(slots(0), rank)
    assert arena.transfers_done(0, stores=2**32, loads=2**32)


def test_a_store_that_failed_on_any_rank_has_failed_until_that_rank_succeeds(arena: Arena) -> None:
    arena.store_ended(slots(0, 1), 0, failed=True)
    arena.store_ended(slots(0, 1), 1, failed=False)
    assert arena.stores_failed([0, 1, 2]) == [True, True, False]
    arena.store_ended(slots(0), 0, failed=False)
    assert arena.stores_failed([0, 1]) == [False, True]
    assert arena.stores_failed([]) == []


def test_where_ranks_hold_the_same_bytes_one_stores_and_all_load(name: str) -> None:
    arena = Arena.shared(name, 2, PART_BYTES, parts=1, mappers=1, ranks=3)
    arena.store_ended(slots(0), 0, failed=False)
    assert arena.transfers_done(0, stores=1, loads=0)
    for rank in (0, 1):
        arena.load_ended(slots(0), rank)
    assert not arena.transfers_done(0, stores=1, loads=1)
    arena.load_ended(slots(0), 2)
    assert arena.transfers_done(0, stores=1, loads=1)
    arena.close()


def test_marks_and_bytes_reach_the_other_processes(name: str) -> None:
    child, arena = ArenaChild(), share(name, mappers=2)
    assert child.ask("attach", name, 2) == "attached"
    child.ask("write", 5, 9)
    child.ask("store_ended", [5, 6], 1, True)
    assert set(arena.buffer(5)) == {9}
    assert arena.stores_failed([5]) == [True]
    assert not arena.transfers_done(5, stores=1, loads=0)
    arena.store_ended(slots(5, 6), 0, failed=False)
    assert arena.transfers_done(5, stores=1, loads=0)
    child.join()
    arena.close()


def test_a_buffer_outlives_the_arena() -> None:
    arena = Arena.private(2, PART_BYTES)
    buffer = arena.buffer(1)
    buffer[:2] = b"ab"
    arena.close()
    assert bytes(buffer[:2]) == b"ab"


def test_a_shared_arena_closes_with_a_buffer_out(name: str) -> None:
    arena = share(name, mappers=2)
    buffer = arena.buffer(0)
    arena.close()
    assert not arena_path(name).exists()
    buffer[0] = 1


def test_close_may_come_twice_and_ends_all_use(arena: Arena) -> None:
    arena.close()
    arena.close()
    with pytest.raises(AssertionError):
        arena.buffer(0)
    with pytest.raises(AssertionError):
        arena.part_address(slots(0), 0)


def test_what_does_not_fit_into_memory_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left_bytes", lambda: memory.HEADROOM_BYTES + (100 << 20))
    monkeypatch.setattr(memory, "untouched_bytes", lambda prefix: 0)
    Arena.private(99, 1 << 20).close()
    with pytest.raises(TierUnavailable) as caught:
        Arena.private(200, 1 << 20)
    assert str(caught.value) == (
        "pinned: the arena needs 200MiB, but memory has only 100MiB free; "
        'lower "capacity" of the pinned tier to "99MiB", or give this process more memory'
    )


def test_what_does_not_fit_into_shared_memory_is_refused_and_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.statvfs("/dev/shm")
    too_many = status.f_blocks * status.f_frsize // (2 * 8192) + 1
    monkeypatch.setattr("kvtier.tiers.pinned.arenafile.memory_room", lambda: Room("memory", 2**60, ""))
    with pytest.raises(
        TierUnavailable, match=r"/dev/shm has only .*iB free; lower .capacity. .*, or enlarge"
    ):
        share(name, mappers=2, slot_count=too_many)
    assert not arena_path(name).exists()


def test_a_chunk_larger_than_what_is_left_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room("memory", 50 << 20, "give this process more memory")
    monkeypatch.setattr("kvtier.tiers.pinned.arena.memory_room", lambda: room)
    with pytest.raises(TierUnavailable, match="too little for one chunk of 67108864 bytes"):
        Arena.private(1, 64 << 20)


def test_without_a_device_in_use_pages_are_only_touched(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    arena.buffer(2)[:3] = b"abc"
    arena.pin_in_background()
    arena.pinning.wait()
    assert arena.pinning.touched_bytes == 4 * arena.slot_bytes
    assert arena.pinning.pinned_bytes == 0
    assert bytes(arena.buffer(2)[:3]) == b"abc"
    assert not caplog.records


class FakeCuda:
    """Records what a registrar asks of torch.cuda."""

    def __init__(self) -> None:
        self.result = 0
        self.calls: list[tuple[Any, ...]] = []

    def current_device(self) -> int:
        return 3

    def is_initialized(self) -> bool:
        return True

    def set_device(self, device: int) -> None:
        self.calls.append(("device", device))

    def cudart(self) -> "FakeCuda":
        return self

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        self.calls.append(("register", address, size_bytes, flags))
        return self.result

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0


def test_memory_is_registered_for_the_device_of_the_thread_that_asked(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr("torch.cuda", cuda)
    address = int(arena.part_address(slots(0), 0)[0])
    arena.pin_in_background()
    arena.pinning.wait()
    assert arena.pinning.pinned_bytes == 4 * arena.slot_bytes
    assert cuda.calls == [("device", 3), ("register", address, 4 * arena.slot_bytes, 1)]
    arena.close()
    assert cuda.calls[2:] == [("device", 3), ("unregister", address)], "on whatever thread"


def test_a_device_that_refuses_costs_a_warning(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda()
    cuda.result = 2
    monkeypatch.setattr("torch.cuda", cuda)
    with caplog.at_level(logging.WARNING):
        arena.pin_in_background()
        arena.pinning.wait()
    assert arena.pinning.pinned_bytes == 0
    assert len(caplog.records) == 1
    assert "cudaHostRegister of 65536 bytes says 2" in caplog.text


def test_a_registrar_raises_what_the_device_says() -> None:
    cuda = FakeCuda()
    cuda.result = 712
    with pytest.raises(RuntimeError, match="712"):
        _CudaRegistrar(cuda).register(Piece(4096, 4096))
