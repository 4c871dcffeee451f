"""Drills a drive: stores and loads chunks as a server would, through a real tier, and compares each byte.

Requests of many chunks go in rounds, some at once. Only the calls are in the time: the bytes of a round are
made before it, and compared after it. Everything lies in a directory of the drill's own, which is gone at its
end. One that a killed drill has left is removed by the next one: who drills holds a lock on its directory.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base import Buffer, ChunkKey, Outcome
from ...errors import TierError, TierUnavailable
from ..io.blocks import BLOCK_BYTES, scratch
from ..io.files import Files
from ..store.namespaces import Identity
from ..tier import NvmeTier
from ..volume.probe import existing

PREFIX = ".kvtier-bench-"
REQUEST_CHUNKS = 64  # at most: a prompt's worth
REQUEST_BYTES_MAX = 64 << 20  # so that the requests at once fit into the memory of any server
AT_ONCE = 4
ROUNDS_MIN = 2  # what is loaded is not what was stored a moment ago
CAPACITY_BYTES_MAX = 4 << 30  # written once at most, so that a drill costs the drive next to nothing
CAPACITY_BYTES_MIN = 256 << 20  # less holds too few requests to measure
FREE_SHARE = 20  # a drill takes a 20th of what is free
FILL_SHARE = 0.5  # of the capacity is stored: nothing of it is evicted before it is loaded
ABANDONED_S = 60.0  # a directory this old that nobody locks is one of a killed drill
STAMP_BYTES = 8  # at the start of each block: the chunk's number

Progress = Callable[[float], None]  # takes the seconds that have passed
Call = Callable[[Sequence[ChunkKey], Sequence[Buffer]], Coroutine[Any, Any, Outcome]]


@dataclass(slots=True)
class Phase:
    """What was stored, or loaded.

    Attributes:
        took_s: time within the calls alone.
        cpu_s: of the whole process during them.
        latencies_s: of each request.
    """

    size_bytes: int = 0
    took_s: float = 0.0
    cpu_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.took_s if self.took_s else 0.0

    @property
    def cpu_s_per_gib(self) -> float:
        return self.cpu_s / (self.size_bytes / (1 << 30)) if self.size_bytes else 0.0

    def percentile_s(self, percent: int) -> float:
        """A percentile of the latencies; 0 where there are none."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Drilled:
    """What a drill with chunks of one size has found.

    Attributes:
        flush_s: what it took to make durable all that was stored.
        is_direct: chunks went past the page cache; else loads say nothing of the drive.
        compared_chunks: that were loaded, and compared with what was stored.
        wrong_chunks: those of them whose bytes were not those that were stored.
        failed: chunks that could not be stored or loaded, by reason.
    """

    chunk_bytes: int
    stored: Phase
    loaded: Phase
    flush_s: float
    is_direct: bool
    compared_chunks: int
    wrong_chunks: int
    failed: dict[str, int]


def capacity_for(free_bytes: int, reserve_bytes: int) -> int:
    """How much room a drill may take.

    Raises:
        TierUnavailable: there is too little.
    """
    capacity_bytes = min(CAPACITY_BYTES_MAX, free_bytes // FREE_SHARE)
    left_bytes = free_bytes - reserve_bytes
    if left_bytes < CAPACITY_BYTES_MIN:
        raise TierUnavailable(
            "nvme",
            f"{max(0, left_bytes)} bytes are free above the reserve, too few to measure: "
            f"it takes {CAPACITY_BYTES_MIN}",
        )
    return max(CAPACITY_BYTES_MIN, min(capacity_bytes, left_bytes))


@contextmanager
def place_beside(path: Path) -> Iterator[Path]:
    """A directory on the file system of `path`, gone at the end; removes those that killed drills have left.

    Raises:
        OSError: none can be made there.
    """
    inside, beside = existing(path), existing(path.parent)
    parent = beside if beside.stat().st_dev == inside.stat().st_dev else inside
    for left in parent.glob(f"{PREFIX}*"):
        _remove_abandoned(left)
    place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield place
    finally:
        os.close(fd)
        shutil.rmtree(place, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    with suppress(OSError):
        if time.time() - place.stat().st_mtime < ABANDONED_S:
            return  # perhaps made this moment, and not locked yet
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)
        finally:
            os.close(fd)


async def drill(
    root: Path,
    *,
    chunk_bytes: int,
    capacity_bytes: int,
    seconds: float,
    progress: Progress,
    files: Files | None = None,
) -> Drilled:
    """Drill with chunks of one size, in a new store at `root`; half of the time stores, the rest loads.

    Raises:
        TierUnavailable: no store can be made there.
    """
    tier = await NvmeTier.open(
        root,
        capacity_bytes=capacity_bytes,
        reserve_bytes=0,
        identity=Identity({"model": "kvtier bench"}),
        chunk_bytes=chunk_bytes,
        files=files,
    )
    try:
        return await _Drill(tier, chunk_bytes, capacity_bytes, progress).run(seconds)
    finally:
        await tier.close()


class _Drill:
    """One run over an open tier. Used on its event loop."""

    def __init__(self, tier: NvmeTier, chunk_bytes: int, capacity_bytes: int, progress: Progress) -> None:
        self._tier, self._chunk_bytes, self._progress = tier, chunk_bytes, progress
        fill_bytes = int(capacity_bytes * FILL_SHARE)
        request_bytes = min(REQUEST_BYTES_MAX, fill_bytes // (AT_ONCE * ROUNDS_MIN))
        self._request_chunks = max(1, min(REQUEST_CHUNKS, request_bytes // chunk_bytes))
        round_bytes = AT_ONCE * self._request_chunks * chunk_bytes
        self._rounds_max = fill_bytes // round_bytes
        memory = scratch(round_bytes)
        self._buffers = [memory[i : i + chunk_bytes] for i in range(0, len(memory), chunk_bytes)]
        self._pattern = bytearray(os.urandom(chunk_bytes))  # so that no drive can compress it
        # Mutable state.
        self._failed: Counter[str] = Counter()
        self._wrong: set[ChunkKey] = set()
        self._compared: set[ChunkKey] = set()

    async def run(self, seconds: float) -> Drilled:
        began_s = time.monotonic()
        stored, loaded, rounds = Phase(), Phase(), 0
        while rounds < self._rounds_max and (rounds < ROUNDS_MIN or time.monotonic() - began_s < seconds / 2):
            if not await self._store(rounds, stored):
                break  # there may be no room for more
            rounds += 1
            self._progress(min(seconds, time.monotonic() - began_s))
        flush_s = await self._flush(rounds)
        order = random.sample(range(rounds), rounds)
        for turn in itertools.count() if rounds else ():
            await self._load(order[turn % rounds], loaded)
            self._progress(min(seconds, time.monotonic() - began_s))
            if time.monotonic() - began_s >= seconds:
                break
        return Drilled(
            chunk_bytes=self._chunk_bytes,
            stored=stored,
            loaded=loaded,
            flush_s=flush_s,
            is_direct=bool(self._tier.stats().gauges["direct_io"]),
            compared_chunks=len(self._compared),
            wrong_chunks=len(self._wrong),
            failed=dict(self._failed),
        )

    async def _store(self, number: int, phase: Phase) -> bool:
        """Store one round; whether all of it was."""
        keys = self._keys(number)
        for key, buffer in zip(keys, self._buffers, strict=True):
            buffer[:] = self._stamped(key)
        outcomes = await self._timed(keys, self._tier.store, phase)
        return not any(outcome.failed for outcome in outcomes)

    async def _flush(self, rounds: int) -> float:
        """Make durable what was stored; how long that took."""
        began_s = time.monotonic()
        try:
            await self._tier.flush()
        except TierError:
            self._failed["not_durable"] += rounds * len(self._buffers)
        return time.monotonic() - began_s

    async def _load(self, number: int, phase: Phase) -> None:
        keys = self._keys(number)
        outcomes = await self._timed(keys, self._tier.load, phase)
        there = {key for outcome in outcomes for key in outcome.succeeded}
        self._compared |= there
        for key, buffer in zip(keys, self._buffers, strict=True):
            if key in there and bytes(buffer) != self._stamped(key):
                self._wrong.add(key)

    async def _timed(self, keys: Sequence[ChunkKey], call: Call, phase: Phase) -> list[Outcome]:
        count = self._request_chunks
        cpu_s, began_s = _cpu_s(), time.perf_counter()

        async def one(first: int) -> Outcome:
            outcome = await call(keys[first : first + count], self._buffers[first : first + count])
            phase.latencies_s.append(time.perf_counter() - began_s)
            return outcome

        outcomes = await asyncio.gather(*(one(first) for first in range(0, len(keys), count)))
        phase.took_s += time.perf_counter() - began_s
        phase.cpu_s += _cpu_s() - cpu_s
        for outcome in outcomes:
            phase.size_bytes += len(outcome.succeeded) * self._chunk_bytes
            self._failed.update(reason.value for reason in outcome.failed.values())
        return outcomes

    def _keys(self, number: int) -> list[ChunkKey]:
        first = number * len(self._buffers)
        return [i.to_bytes(STAMP_BYTES, "little") for i in range(first, first + len(self._buffers))]

    def _stamped(self, key: ChunkKey) -> bytearray:
        """The chunk's bytes, good until the next call: no block is like another chunk's, so a swap shows."""
        for start in range(0, self._chunk_bytes, BLOCK_BYTES):
            self._pattern[start : start + STAMP_BYTES] = key
        return self._pattern


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
