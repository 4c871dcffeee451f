import errno
import logging
import mmap
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from kvtier.tiers.pinned import pinning
from kvtier.tiers.pinned.pinning import Piece, Pinning, populate

SLOT_BYTES = 3 * 4096

SLOTS = 1000

SIZE_BYTES = SLOT_BYTES * SLOTS


class Memory:
    """A mapping, and the pinning of it."""

    def __init__(self, start: float = 0.0) -> None:
        self.map = mmap.mmap(-1, SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.address = self.bytes.ctypes.data
        self.pinning = Pinning(self.address, SLOT_BYTES, SLOTS, start=start)


class Recorder:
    """A registrar that waits for leave, and can refuse."""

    def __init__(self, allowed: int = SLOTS) -> None:
        self.allowed = allowed
        self.registered: list[Piece] = []
        self.unregistered: list[Piece] = []
        self.called = threading.Event()
        self.leave = threading.Event()
        self.leave.set()
        self._lock = threading.Lock()

    def register(self, piece: Piece) -> None:
        self.called.set()
        self.leave.wait()
        with self._lock:
            if len(self.registered) == self.allowed:
                raise RuntimeError("no more")
            self.registered.append(piece)

    def unregister(self, piece: Piece) -> None:
        self.unregistered.append(piece)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "PIECE_BYTES", 10 * SLOT_BYTES + 1)
    monkeypatch.setattr(pinning, "TOUCH_BYTES", 4 * 4096)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.pinning.end()


def resident_bytes(memory: Memory) -> int:
    """What of the mapping is in memory, by the kernel's own account."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(memory.address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(file.read(SIZE_BYTES // mmap.PAGESIZE * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE


def test_pages_are_there_once_touched(memory: Memory) -> None:
    assert resident_bytes(memory) == 0
    memory.pinning.begin(None)
    memory.pinning.wait()
    assert memory.pinning.touched_bytes == SIZE_BYTES
    assert resident_bytes(memory) == SIZE_BYTES


def test_touching_changes_nothing_that_others_write_meanwhile(memory: Memory) -> None:
    expected = np.arange(SIZE_BYTES, dtype=np.uint8)
    memory.pinning.begin(None)
    memory.bytes[:] = expected
    memory.pinning.wait()
    assert np.array_equal(memory.bytes, expected)


def test_pieces_are_whole_slots_that_cover_all_and_do_not_overlap(memory: Memory) -> None:
    recorder = Recorder()
    memory.pinning.begin(recorder)
    memory.pinning.wait()
    pieces = sorted(recorder.registered)
    assert memory.pinning.piece_bytes == 10 * SLOT_BYTES
    assert pieces == [
        Piece(address, 10 * SLOT_BYTES)
        for address in range(memory.address, memory.address + SIZE_BYTES, 10 * SLOT_BYTES)
    ]
    assert memory.pinning.pinned_bytes == SIZE_BYTES


def test_the_last_piece_may_be_short() -> None:
    recorder, pinning = Recorder(), Pinning(Memory().address, SLOT_BYTES, 15, start=0.0)
    assert pinning.piece_bytes == 10 * SLOT_BYTES
    assert [piece.size_bytes for piece in pinning._left] == [10 * SLOT_BYTES, 5 * SLOT_BYTES]
    assert not recorder.called.is_set()


def test_a_slot_larger_than_a_piece_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "PIECE_BYTES", 4096)
    assert Pinning(4096, SLOT_BYTES, 3, start=0.0).piece_bytes == SLOT_BYTES


@pytest.mark.parametrize("slot_bytes", [4096, SLOT_BYTES, 16 * 4096, 17 * 4096])
@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_pieces_share_no_page_however_large_pages_are(
    page: int, slot_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    pieces = Pinning(65536, slot_bytes, 100, start=0.0)._left
    assert all(piece.address % page == 0 for piece in pieces)
    assert [piece.address for piece in pieces][1:] == [p.address + p.size_bytes for p in pieces][:-1]
    assert sum(piece.size_bytes for piece in pieces) == 100 * slot_bytes


def test_processes_begin_at_different_pieces() -> None:
    halfway = Memory(start=0.5)
    assert halfway.pinning._left[0].address == halfway.address + SIZE_BYTES // 2
    assert len(set(halfway.pinning._left)) == 100


def test_what_was_registered_is_unregistered_at_the_end(memory: Memory) -> None:
    recorder = Recorder()
    assert not memory.pinning.is_whole
    memory.pinning.begin(recorder)
    memory.pinning.wait()
    assert memory.pinning.is_whole
    memory.pinning.end()
    assert not memory.pinning.is_whole
    assert sorted(recorder.unregistered) == sorted(recorder.registered)
    assert memory.pinning.pinned_bytes == 0
    memory.pinning.end()
    assert len(recorder.unregistered) == 100


def test_the_end_does_not_wait_for_all_pieces(memory: Memory) -> None:
    recorder = Recorder()
    recorder.leave.clear()
    memory.pinning.begin(recorder)
    recorder.called.wait()
    memory.pinning._stopped.set()
    recorder.leave.set()
    memory.pinning.end()
    assert 1 <= len(recorder.registered) <= len(memory.pinning._threads)
    assert recorder.unregistered
    assert sorted(recorder.unregistered) == sorted(recorder.registered)


def test_a_refusal_is_warned_of_once_and_the_rest_is_still_touched(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(allowed=7)
    with caplog.at_level(logging.WARNING):
        memory.pinning.begin(recorder)
        memory.pinning.wait()
    assert memory.pinning.pinned_bytes == 70 * SLOT_BYTES
    assert memory.pinning.touched_bytes == SIZE_BYTES
    assert [record.message for record in caplog.records] == [
        "pinned: memory cannot be page-locked in advance; transfers may be slower: no more"
    ]


def test_a_kernel_that_cannot_touch_still_page_locks(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_old(address: int, size_bytes: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(pinning, "populate", too_old)
    with caplog.at_level(logging.WARNING):
        memory.pinning.begin(Recorder())
        memory.pinning.wait()
    assert memory.pinning.touched_bytes == 0
    assert memory.pinning.pinned_bytes == SIZE_BYTES
    assert len(caplog.records) == 1


def test_a_second_begin_does_nothing(memory: Memory) -> None:
    recorder = Recorder()
    memory.pinning.begin(recorder)
    memory.pinning.begin(Recorder())
    memory.pinning.wait()
    assert len(recorder.registered) == 100


def test_after_the_end_nothing_begins(memory: Memory) -> None:
    memory.pinning.end()
    memory.pinning.begin(None)
    memory.pinning.wait()
    assert memory.pinning.touched_bytes == 0


def test_memory_that_is_not_there_is_an_error() -> None:
    memory = Memory()
    address = memory.address
    del memory.bytes
    memory.map.close()
    with pytest.raises(OSError, match="Cannot allocate memory"):
        populate(address, 4096)
