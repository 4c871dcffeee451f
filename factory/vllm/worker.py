"""The worker's side of the plugin: copies between the device and this rank's part of every slot."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...tiers.device.copies import CopyJob, Lane
from ...tiers.device.copyplan import Spans
from ...tiers.device.gpu import GpuTier
from ...tiers.pinned.arena import Arena

SLOTS_MARKED_AT_ONCE = 64  # and the rest of a transfer, in a call that reports none: some 15 µs
TRANSFER_SLOTS = 8  # what marking a transfer costs beside its slots, in slots
UNMARKED_MAX = 1024  # transfers: a worker that always has some to report marks them, too

Indexes = Sequence[int] | NDArray[np.int32]
R = TypeVar("R")


class _Transfer(NamedTuple):
    job_id: int
    copy: CopyJob
    slots: NDArray[np.int64]
    is_store: bool


class CopyWorker:
    """Transfers of one rank. One thread: the worker's.

    A store whose copy fails is marked in the arena and reported as finished. The scheduler drops its
    chunks, and the server, which would end at a failed job, goes on. A load that fails is reported as failed.

    The other marks only say which slots no copy touches any more. Who reads them waits for nothing else.
    """

    def __init__(self, gpu: GpuTier, arena: Arena, *, rank: int, part: int) -> None:
        assert gpu.part_bytes <= arena.part_bytes, "the server's own figure covers all its tensors"
        self._gpu = gpu
        self._arena = arena
        self._rank = rank
        self._part = part
        # Mutable state:
        self._lanes: dict[Lane, deque[_Transfer]] = {lane: deque() for lane in Lane}
        self._in_flight = 0  # transfers in all lanes: a step with none of these does not look at the lanes
        self._unmarked: deque[_Transfer] = deque()  # reported as ended, the oldest first
        self._has_failed = False  # some store: then marks say which, and are due at once

    def store(self, job_id: int, spans: Spans, slots: Indexes) -> None:
        """Copy device blocks into this rank's part of the slots."""
        indexes = np.asarray(slots, np.int64)
        copy = self._gpu.submit_store(spans, self._arena.part_address(indexes, self._part))
        self._begin(Lane.STORE, _Transfer(job_id, copy, indexes, is_store=True))

    def load(self, job_id: int, spans: Spans, slots: Indexes, *, expedited: bool = False) -> None:
        """Copy this rank's part of the slots into device blocks; an expedited load overtakes waiting ones."""
        indexes = np.asarray(slots, np.int64)
        addresses = self._arena.part_address(indexes, self._part)
        copy = self._gpu.submit_load(spans, addresses, expedited=expedited)
        lane = Lane.EXPEDITED if expedited else Lane.LOAD
        self._begin(lane, _Transfer(job_id, copy, indexes, is_store=False))

    def finished(self, result: Callable[[int, bool, int, float], R]) -> list[R]:
        """What has ended since the last call, each lane in the order of submission.

        Its slots are marked when there is time, which is a call that finds nothing, or else by `mark`.

        Args:
            result: makes one from the job's id, whether it succeeded, its bytes, and the seconds it took.
        """
        if not self._in_flight and not self._unmarked:
            return []
        finished: list[R] = []
        for queue in self._lanes.values():
            while queue and queue[0].copy.done():
                transfer = queue.popleft()
                self._unmarked.append(transfer)
                job_id, copy, _, is_store = transfer
                failed = copy.error is not None
                self._has_failed |= failed and is_store
                finished.append(result(job_id, is_store or not failed, copy.size_bytes, copy.seconds))
        self._in_flight -= len(finished)
        if self._has_failed:
            self.mark()
        elif not finished:
            self._mark_some()
        while len(self._unmarked) > UNMARKED_MAX:
            self._mark_oldest()
        return finished

    def mark(self) -> None:
        """Mark the slots of what was reported as ended."""
        while self._unmarked:
            self._mark_oldest()

    def _mark_some(self) -> None:
        slots = 0
        while self._unmarked and slots < SLOTS_MARKED_AT_ONCE:
            slots += TRANSFER_SLOTS + self._mark_oldest()

    def _mark_oldest(self) -> int:
        """Mark the slots of one transfer; returns how many they are."""
        transfer = self._unmarked.popleft()
        if transfer.is_store:
            failed = transfer.copy.error is not None
            self._arena.store_ended(transfer.slots, self._rank, failed=failed)
        else:
            self._arena.load_ended(transfer.slots, self._rank)
        return len(transfer.slots)

    def wait(self, job_ids: Set[int]) -> None:
        """Return once these jobs have ended; `finished` still reports them."""
        for transfer in self._under_way():
            if transfer.job_id in job_ids:
                transfer.copy.wait(None)

    def close(self) -> None:
        """Wait for what is in flight, then release the device tier and the mapping."""
        for transfer in self._under_way():
            transfer.copy.wait(None)
        self._gpu.close_now()
        self._arena.close()

    def _under_way(self) -> Iterator[_Transfer]:
        return itertools.chain(*self._lanes.values())

    def _begin(self, lane: Lane, transfer: _Transfer) -> None:
        self._lanes[lane].append(transfer)
        self._in_flight += 1
