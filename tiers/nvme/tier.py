"""The NVMe tier: a bounded, checksummed log of chunks that survives its process.

Theory of operation. The tier appends the chunks of one job side by side to the open segment of this process
(`log/tail`, `log/append`), several lanes writing at once (`io/pieces`, `io/lanes`). One transaction of the
index (`index/`) makes them visible to every process. A load (`loader`) asks the index where its chunks lie,
reads neighbours together and checks each one's checksum. When the cap is reached, the oldest segment is
emptied and used again (`log/victim`), and what was read from it is written again (`log/reclaim`).

A request waits for a few calls on lane threads and one on the index thread. The rest is upkeep, in tasks that
do not delay each other (`upkeep`): syncing once in 5 to 30 s, counting reads, keeping segments ready, giving
room back when others fill the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from ..errors import TierError
from ..settled import happened
from .failures import FailureLog
from .index.errors import IndexStarved
from .index.memory import SHARED_MEMORY
from .index.order import removed
from .index.records import Extent, Namespace
from .io.files import Files
from .io.lanes import Lanes
from .io.refusal import failure_of
from .keeper import Keeper
from .loader import Loader
from .log.chunks import Live, Target
from .log.events import Events
from .log.reclaim import Allowance
from .presence import Presence
from .reads import Reads
from .store.namespaces import Identity
from .store.opening import Store, close_store, invalidate, open_store
from .upkeep import Upkeep
from .uses import Uses
from .view import View
from .wear.meter import Meter
from .wear.terms import NO_TERMS, Terms
from .writing import Writing

logger = logging.getLogger(__name__)

WRITE_AMPLIFICATION = 1.3


class NvmeTier:
    """Chunks in a directory on a local drive, shared with other processes.

    Threads: `lookup` and `stats` from any thread; they read memory-mapped pages and never wait for writes.
    Everything else on the event loop that opened the tier. Cancellation: a cancelled store or load returns
    once no thread touches its buffers; the store's chunks are then there or not, each whole. Durability: a
    stored chunk survives a killed process at once, and a power loss after `flush`, or else after 5 to 30 s:
    the longer, the more a flush costs the drive.
    """

    name = "nvme"

    def __init__(
        self,
        lanes: Lanes,
        store: Store,
        identity: Identity,
        *,
        capacity_bytes: int,
        chunk_bytes: int,
        write_amplification: float,
        terms: Terms,
    ) -> None:
        self._lanes, self._store, self._index = lanes, store, store.index
        self._capacity_bytes, self._chunk_bytes = capacity_bytes, chunk_bytes
        self._failures = FailureLog(self.name)
        self._presence = Presence(store.directory)
        self._events = Events()
        self._events.on_failed(self._failures.add)
        self._view = View(self._index, identity)
        self._allowance = Allowance(write_amplification, capacity_bytes)
        self._meter = Meter(store.index, capacity_bytes, terms)
        writing = Writing.to(store, lanes, self._events, self._allowance, self._meter.budget)
        self._log, self._durability, self._ahead, self._appender, self._carrier = writing
        self._uses = Uses(lanes, self._index, self._view)
        self._reads = Reads(lanes, self._index)
        failures, presence = self._failures, self._presence
        self._upkeep = Upkeep(lanes, store, writing, self._count_uses, self._events, failures, presence)
        self._loader = Loader(lanes, store, self._view, self._log.room, self._reads, failures, presence)
        self._keeper = Keeper(lanes, store, failures)
        # Mutable state, changed on the loop only.
        self._counters = dict.fromkeys(("stored_chunks", "stored_bytes", "dropped_chunks"), 0)
        self._calls = 0  # stores, loads and the like under way
        self._idle = asyncio.Event()  # set while there are none
        self._idle.set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._outdated: Identity | None = None  # an epoch that is still to be raised
        self._last_record: Namespace | None = None  # once the store is left

    @staticmethod
    async def open(
        path: str | os.PathLike[str],
        *,
        capacity_bytes: int,
        reserve_bytes: int,
        identity: Identity,
        chunk_bytes: int,
        write_amplification: float = WRITE_AMPLIFICATION,
        terms: Terms = NO_TERMS,
        files: Files | None = None,
        memory: Path = SHARED_MEMORY,
    ) -> NvmeTier:
        """Open or create the store at `path` for chunks of up to `chunk_bytes`, with its index in `memory`.

        The cap is that of the whole directory, and the last process to open it sets it for all.

        Raises:
            TierUnavailable: the store cannot be used; the message says why and what to do.
            IdentityMismatch: the namespace on the drive names other fields.
        """
        lanes = Lanes()
        open_it = partial(
            open_store,
            files or Files(),
            Path(path),
            capacity_bytes=capacity_bytes,
            reserve_bytes=reserve_bytes,
            identity=identity,
            chunk_bytes=chunk_bytes,
            endurance_bytes=terms.endurance_bytes,
            place=memory,
        )
        try:
            store = await _opened(lanes, open_it, identity)
        except BaseException:
            lanes.close()
            raise
        return NvmeTier(
            lanes,
            store,
            identity,
            capacity_bytes=capacity_bytes,
            chunk_bytes=chunk_bytes,
            write_amplification=write_amplification,
            terms=terms,
        )

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        """Say for each key whether a load would find it now."""
        if self._closed or self._presence.is_gone:
            return [False] * len(keys)
        try:
            return self._view.has(keys)
        except TierError:
            return [False] * len(keys)

    def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Coroutine[Any, Any, Outcome]:
        """Keep each buffer's bytes under its key, in the epoch in force at this very call."""
        # Not a coroutine function: its body would run later, perhaps in the next epoch.
        return self._stored(0 if self._closed else self._view.scope(), keys, buffers)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Fill each buffer with its key's bytes; a chunk of another length is a miss."""
        with self._call() as allowed:
            if not allowed:
                return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
            if self._presence.is_gone:
                return Outcome(failed=dict.fromkeys(keys, Failure.GONE))
            return await self._loader.load(keys, buffers)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        """Remove the keys' chunks; what is removed on request stays removed after a power loss too."""
        with self._call() as allowed:
            if not allowed or not keys or self._presence.is_gone:
                return
            digest, checksum = self._view.digest, self._view.checksum
            requested = reason is RemoveReason.REQUESTED
            keys = tuple(dict.fromkeys(keys))
            forget = partial(removed, digest, keys, requested)
            scope, order = await self._lanes.index(partial(self._index.write, forget))
            if order:
                await self._appender.append_removals(Target(digest, scope, checksum), keys, order)

    async def flush(self) -> None:
        """Return when everything stored so far would survive a power loss; TierError where it may not."""
        with self._call() as allowed:
            if not allowed:
                return
            await self._lanes.upkeep(self._presence.look)
            if self._presence.is_gone:
                raise self._presence.error()
            try:
                await self._durability.flush()
            except (OSError, TierError) as error:
                raise TierError(self.name, f"what was written may not be durable: {error}") from error

    async def invalidate(self) -> None:
        """Raise the epoch: every older chunk of this namespace is a miss from now on, for every process.

        The weights may have changed, and no field says into what: from here on the tier keeps its chunks in
        a namespace of its own. Nothing is found or kept until the index knows it. TierError says that it
        could not be written, and that other processes may still find them: call it again.
        """
        before = self._outdated or self._view.identity
        await self._forget(before, before if before.is_of_one_process else before.of_one_process())

    async def clear(self) -> None:
        """Raise the epoch as `invalidate` does, and go on in the same namespace: the weights are the same."""
        await self._forget(self._outdated or self._view.identity, self._view.identity)

    async def _forget(self, before: Identity, after: Identity) -> None:
        with self._call() as allowed:
            if not allowed:
                return
            self._view.enter(after)
            self._loader.follow()
            self._outdated = before  # until the index knows it, also where this call fails
            change = partial(self._lanes.index, partial(invalidate, self._store, before, after))
            try:
                try:
                    await change()
                except OSError as error:
                    if failure_of(error) is not Failure.NO_SPACE:
                        raise
                    # No segment could be spared: but one that is ready can, or one that is full, once sealed.
                    if not await self._ahead.give_one_back():
                        await self._durability.round()
                    await change()
            except OSError as error:
                raise TierError(self.name, f"older chunks could not be put out of sight: {error}") from error
            self._outdated = None

    def used(self, keys: Sequence[ChunkKey]) -> None:
        """Note that another tier has served these chunks: a reclaim carries them like those read here."""
        self._uses.note(keys)

    def stats(self) -> TierStats:
        """Return the tier's numbers; chunks are this namespace's, bytes the whole directory's."""
        counters = {
            **self._counters,
            **self._loader.counters,
            "evicted_chunks": self._carrier.evicted_chunks,
            "carried_chunks": self._carrier.carried_chunks,
            "carried_bytes": self._carrier.carried_bytes,
            "over_budget_chunks": self._meter.over_budget_chunks,
        }
        for part in (self._durability, self._ahead, self._appender, self._upkeep):
            counters["io_errors"] += part.io_errors
        now = self._last_record or self._view.record()
        gauges = {
            "useful_bytes": now.useful_bytes,
            "durability_period_s": round(self._durability.period_s),
            "direct_io": int(self._store.directory.files.direct),
            **self._meter.gauges(),
        }
        return TierStats(now.chunks, self._upkeep.used_bytes, self._capacity_bytes, counters, gauges)

    @property
    def moved_bytes(self) -> int:
        """Bytes that the drive has moved so far."""
        return self._lanes.moved_bytes

    @property
    def directory_id(self) -> tuple[int, int]:
        """What tells its directory from every other one, by whatever path it is reached."""
        return self._store.directory.lock_id

    def watch(self, report: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        """Report which of this namespace's chunks this process evicts, on threads of the tier."""
        self._events.on_freed(partial(self._report_evicted, report))

    async def close(self) -> None:
        """Finish what is under way and leave the store; idempotent."""
        # A loop that ends may have cancelled the task even before its first step.
        if self._closing is None or (self._closing.cancelled() and self._last_record is None):
            self._closed, self._closing = True, asyncio.create_task(self._close())
        if not self._closing.done():  # once cancelled, by a loop that ends, it went through all the same
            await asyncio.shield(self._closing)

    # Storing.

    async def _stored(self, scope: int, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        with self._call() as allowed:
            if not allowed:
                return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
            if self._presence.is_gone:
                self._counters["dropped_chunks"] += len(keys)
                return Outcome(failed=dict.fromkeys(keys, Failure.GONE))
            try:
                now, extents = self._loader.find(keys)
            except IndexStarved as error:
                self._counters["dropped_chunks"] += len(keys)
                return self._loader.starved(keys, error)
            if now != scope or not scope:
                failed = dict.fromkeys(keys, Failure.DROPPED)
            else:
                new = {
                    key: buffer
                    for key, buffer, extent in zip(keys, buffers, extents, strict=True)
                    if extent is None
                }
                failed = await self._append(scope, new)
            self._counters["dropped_chunks"] += len(failed)
            return Outcome.of(keys, failed)

    async def _append(self, scope: int, new: dict[ChunkKey, Buffer]) -> dict[ChunkKey, Failure]:
        if not new:
            return {}
        assert max(map(len, new.values())) <= self._chunk_bytes, "the tier was made for smaller chunks"
        target = Target(self._view.digest, scope, self._view.checksum)
        with self._meter.spending(new) as chunks:
            failed = await self._appender.append(target, chunks, _first)
        size_bytes = sum(len(buffer) for key, buffer in chunks if key not in failed)
        self._counters["stored_chunks"] += len(chunks) - len(failed)
        self._counters["stored_bytes"] += size_bytes
        self._allowance.stored(size_bytes)
        if not {Failure.NO_SPACE, Failure.INDEX_FULL}.isdisjoint(failed.values()):
            self._upkeep.room_changed()
        if Failure.GONE in failed.values():
            await self._lanes.upkeep(self._presence.look)
        return failed | dict.fromkeys([*new][len(chunks) :], Failure.NO_SPACE)

    async def _count_uses(self) -> None:
        await self._reads.count()
        await self._uses.count()
        await self._lanes.upkeep(self._meter.note)

    # Calls and their end.

    @contextlib.contextmanager
    def _call(self) -> Iterator[bool]:
        """Whether a call may go on; while it does, `close` waits for it."""
        self._calls += 1
        self._idle.clear()
        try:
            yield not self._closed
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _close(self) -> None:
        """Whatever fails on the way, and whoever cancels it, the store is left and the threads end."""
        async with contextlib.AsyncExitStack() as at_last:
            at_last.callback(self._lanes.close)
            at_last.push_async_callback(self._closing_step, self._leave_store)
            at_last.push_async_callback(self._closing_step, self._stop_reading)
            at_last.push_async_callback(self._closing_step, self._upkeep.stop)
            at_last.push_async_callback(self._closing_step, self._keeper.stop)
            await happened(self._idle)

    async def _closing_step(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await step()
        except (OSError, TierError) as error:
            self._failures.add(f"close: {error}")
        except Exception as error:
            self._failures.add_bug("close", error)

    async def _stop_reading(self) -> None:
        self._last_record = self._view.record()
        self._meter.close()
        self._loader.close()

    async def _leave_store(self) -> None:
        await self._lanes.upkeep(partial(close_store, self._store, self._view.identity))

    def _report_evicted(
        self, report: Callable[[Sequence[ChunkKey], RemoveReason], None], live: Sequence[Live]
    ) -> None:
        keys = [one.key for one in live if one.namespace == self._view.digest]
        there = self._view.has(keys)
        report([key for key, found in zip(keys, there, strict=True) if not found], RemoveReason.EVICTED)


async def _opened(lanes: Lanes, open_it: Callable[[], Store], identity: Identity) -> Store:
    stores: list[Store] = []
    try:
        await lanes.upkeep(lambda: stores.append(open_it()))
    except BaseException:
        for store in stores:  # opened all the same, while the wait for it was cancelled
            with contextlib.suppress(OSError, TierError):
                await lanes.upkeep(partial(close_store, store, identity))
        raise
    (store,) = stores
    return store


def _first(_key: ChunkKey, place: Extent, now: Extent | None) -> Extent | None:
    """The first to store a key wins; the other's bytes are dead weight until their segment is reclaimed."""
    return place if now is None else None
