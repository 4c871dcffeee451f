"""The pinned arena: slots in host memory, of one process or shared by the processes of a server.

`arenafile` has the layout and the lifetime of the file, `pinning` makes its pages ready. This module has what
users see: addresses, buffers and marks.

A mark says how a transfer of a slot ended. Each rank writes its own row of marks, on one thread, and the
scheduler only reads. A rank marks a failed store before it counts the store, so whoever sees the count also
sees the failure.
"""

from __future__ import annotations

import logging
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..errors import TierUnavailable
from .arenafile import NOTE_OFFSET, SHARED_MEMORY, ArenaFile, ArenaLayout, sweep_stale
from .memory import memory_room
from .numa import prefer_node
from .pinning import Piece, Pinning

logger = logging.getLogger(__name__)

_NOTE_LENGTH = struct.Struct("<I")
NOTE_BYTES_MAX = mmap.PAGESIZE - NOTE_OFFSET - _NOTE_LENGTH.size

FEW_SLOTS = 128  # so many are marked one by one sooner than numpy is called, which a server's step finds cold

_REGISTER_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device of the process


class _Views(NamedTuple):
    """The mapping, seen as what it holds."""

    slots: memoryview
    stores_done: npt.NDArray[np.uint32]
    loads_done: npt.NDArray[np.uint32]
    store_failed: npt.NDArray[np.uint8]
    # The same, a rank each, for few slots at a time:
    stores_by_rank: tuple[memoryview, ...]
    loads_by_rank: tuple[memoryview, ...]
    failed_by_rank: tuple[memoryview, ...]


class Arena:
    """Fixed rows of memory, the same in every process that maps them.

    Threads: addresses, buffers and the reading of marks are safe everywhere; one rank's marks have one
    writer. Ownership: a buffer is the slot itself. Buffers may outlive `close`, addresses may not: end the
    copies that use them first.
    """

    def __init__(self, layout: ArenaLayout, mapping: mmap.mmap, file: ArenaFile | None) -> None:
        self.slot_count = layout.slot_count
        self.slot_bytes = layout.slot_bytes
        self.part_bytes = layout.part_bytes
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)  # pages are touched ten times as fast
        self._layout = layout
        self._file = file
        self._mapping = mapping
        self._address = np.frombuffer(mapping, np.uint8).ctypes.data + layout.slots_offset
        start = 0.0 if file is None else file.order / layout.mappers
        self._pinning = Pinning(self._address, self.slot_bytes, self.slot_count, start=start)
        # Mutable state:
        self._views: _Views | None = _views(layout, mapping)  # none once closed

    @classmethod
    def private(
        cls, slot_count: int, part_bytes: int, parts: int = 1, *, numa_node: int | None = None
    ) -> Self:
        """Make an arena for this process alone, on a NUMA node if one is given.

        Raises:
            TierUnavailable: it does not fit into memory.
        """
        layout = ArenaLayout(slot_count, part_bytes, parts, ranks=parts, mappers=1)
        layout.refuse_beyond(memory_room())
        with _unavailable("memory cannot be mapped"):
            mapping = mmap.mmap(-1, layout.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapping.madvise(mmap.MADV_DONTFORK)  # a child's copy-on-write would take pages from under a device
        arena = cls(layout, mapping, None)
        arena._prefer(numa_node)
        return arena

    @classmethod
    def shared(
        cls,
        name: str,
        slot_count: int,
        part_bytes: int,
        parts: int,
        *,
        mappers: int,
        ranks: int,
        numa_node: int | None = None,
    ) -> Self:
        """Map a server's arena, which its first process creates; remove what dead servers left.

        Args:
            name: the server's own, and no other's on this host.
            slot_count: slots; the same in all processes, like the sizes and counts that follow.
            part_bytes: one rank's bytes of one slot.
            parts: rank parts of a slot.
            mappers: processes that will map it.
            ranks: those of them that write marks in it.
            numa_node: the NUMA node to allocate on: the device's. The last process to set one wins.

        Raises:
            TierUnavailable: it does not fit into the machine, or the processes disagree about its layout.
        """
        layout = ArenaLayout(slot_count, part_bytes, parts, ranks, mappers)
        with _unavailable(f"{SHARED_MEMORY} cannot be used"):
            sweep_stale()
            file = ArenaFile.attach(name, layout)
            try:
                arena = cls(layout, mmap.mmap(file.fd, layout.size_bytes), file)
            except BaseException:
                file.leave()
                raise
        arena._prefer(numa_node)
        return arena

    @property
    def pinning(self) -> Pinning:
        """The progress of touching and page-locking, and the boundaries that copies must not cross."""
        return self._pinning

    @property
    def note(self) -> bytes:
        """A message for the server's other processes; empty if nobody has left one."""
        self._open()
        (length,) = _NOTE_LENGTH.unpack_from(self._mapping, NOTE_OFFSET)
        start = NOTE_OFFSET + _NOTE_LENGTH.size
        return bytes(self._mapping[start : start + length])

    @note.setter
    def note(self, note: bytes) -> None:
        """Leave a message of at most `NOTE_BYTES_MAX`; every process that does leaves the same."""
        self._open()
        assert len(note) <= NOTE_BYTES_MAX, "a note is short"
        start = NOTE_OFFSET + _NOTE_LENGTH.size
        self._mapping[start : start + len(note)] = note
        _NOTE_LENGTH.pack_into(self._mapping, NOTE_OFFSET, len(note))

    def buffer(self, index: int) -> memoryview:
        """The bytes of a slot, the parts of all ranks, writable."""
        assert 0 <= index < self.slot_count, "a slot of this arena"
        start = index * self.slot_bytes
        return self._open().slots[start : start + self.slot_bytes]

    def part_address(self, indexes: npt.NDArray[np.integer], part: int) -> npt.NDArray[np.int64]:
        """The addresses of one rank's part of these slots in this process."""
        self._open()
        assert 0 <= part < self._layout.parts, "a part of this arena"
        first = self._address + part * self._layout.aligned_part_bytes
        return np.asarray(indexes, np.int64) * self.slot_bytes + first

    def store_ended(self, slots: npt.NDArray[np.integer], rank: int, *, failed: bool) -> None:
        """Mark that this rank's copies into these slots have ended; each slot once."""
        views = self._open()
        if len(slots) > FEW_SLOTS:
            views.store_failed[rank, slots] = failed
            views.stores_done[rank, slots] += np.uint32(1)
            return
        marks, done = views.failed_by_rank[rank], views.stores_by_rank[rank]
        for slot in slots.tolist():
            marks[slot] = failed
            done[slot] = (done[slot] + 1) % 2**32

    def load_ended(self, slots: npt.NDArray[np.integer], rank: int) -> None:
        """Mark that this rank's copies from these slots have ended."""
        views = self._open()
        if len(slots) > FEW_SLOTS:
            np.add.at(views.loads_done[rank], slots, 1)
            return
        done = views.loads_by_rank[rank]
        for slot in slots.tolist():
            done[slot] = (done[slot] + 1) % 2**32

    def stores_failed(self, indexes: Sequence[int]) -> list[bool]:
        """Say for each slot whether the last store into it failed on some rank."""
        ranks = self._open().failed_by_rank
        return [any(marks[index] for marks in ranks) for index in indexes]

    def transfers_done(self, index: int, *, stores: int, loads: int) -> bool:
        """Say whether every rank has ended this many stores and loads of a slot, counted modulo 2**32.

        Where all ranks hold the same bytes, the first one stores for all.
        """
        stored = self._open().stores_done[: self._layout.parts, index]
        loaded = self._open().loads_done[:, index]
        return bool((stored == stores % 2**32).all() and (loaded == loads % 2**32).all())

    def pin_in_background(self) -> None:
        """Touch all pages, and page-lock them if this process uses a CUDA device; the arena stays usable.

        Call it on a thread whose current device is the right one. A failure is one warning, and the arena
        keeps working unpinned. A copy must not cross the end of a piece, see `Pinning`.
        """
        self._open()
        self._pinning.begin(_registrar())

    def close(self) -> None:
        """Undo the page-locking and unmap, when the last buffer is gone; idempotent."""
        if self._views is None:
            return
        self._pinning.end()
        self._views = None
        if self._file is not None:
            self._file.leave()
        with suppress(BufferError):  # a buffer is out: the mapping ends with it
            self._mapping.close()

    def _prefer(self, numa_node: int | None) -> None:
        if numa_node is None:
            return
        try:
            prefer_node(self._address, self.slot_count * self.slot_bytes, numa_node)
        except OSError as error:
            logger.warning("pinned: memory comes from any NUMA node; transfers may be slower: %s", error)

    def _open(self) -> _Views:
        assert self._views is not None, "the arena is open"
        return self._views


class _CudaRegistrar:
    """Page-locks for one device of this process.

    cudaHostRegister and cudaHostUnregister (CUDA runtime API, "Memory Management") act on the thread's
    current device, which is device 0 on a new thread: left alone, they would make a context there.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._device = cuda.current_device()

    def register(self, piece: Piece) -> None:
        self._cuda.set_device(self._device)
        result = self._cuda.cudart().cudaHostRegister(*piece, _REGISTER_PORTABLE)
        if int(result) != 0:
            raise RuntimeError(f"cudaHostRegister of {piece.size_bytes} bytes says {result}")

    def unregister(self, piece: Piece) -> None:
        self._cuda.set_device(self._device)
        self._cuda.cudart().cudaHostUnregister(piece.address)


def _registrar() -> _CudaRegistrar | None:
    import torch  # imported here: a process that only maps the arena does not need it

    cuda: Any = torch.cuda  # its functions have no types
    return _CudaRegistrar(cuda) if cuda.is_initialized() else None


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TierUnavailable("pinned", f"{what}: {error}") from error


def _views(layout: ArenaLayout, mapping: mmap.mmap) -> _Views:
    shape = layout.ranks, layout.slot_count
    stores_at = mmap.PAGESIZE
    loads_at = stores_at + layout.counters_bytes
    stores = np.ndarray(shape, np.uint32, mapping, stores_at)
    loads = np.ndarray(shape, np.uint32, mapping, loads_at)
    failed = np.ndarray(shape, np.uint8, mapping, loads_at + layout.counters_bytes)
    return _Views(
        slots=memoryview(mapping)[layout.slots_offset :],
        stores_done=stores,
        loads_done=loads,
        store_failed=failed,
        stores_by_rank=tuple(memoryview(marks) for marks in stores),
        loads_by_rank=tuple(memoryview(marks) for marks in loads),
        failed_by_rank=tuple(memoryview(marks) for marks in failed),
    )
