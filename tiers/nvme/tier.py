"""The NVMe tier: a bounded, checksummed log of chunks that survives its process.

Theory of operation. Chunks of one job are appended side by side to the open segment of this process
(`append`), several lanes writing at once (`pieces`, `files`), and become visible to every process in one
transaction of the index (`index`, `ledger`). A load asks the index where its chunks lie, reads neighbours
together and checks each one's checksum. When the cap is reached, the oldest segment is emptied and used
again (`log`), and what was read from it moves to the open one (`carry`).

What a request waits for is a few calls on lane threads and one on the index thread. The rest is upkeep, in
one task (`upkeep`): syncing at most a second after a write, counting reads, keeping a free segment ahead,
giving room back when others fill the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from ..errors import TierError
from .format.checksum import ChunkChecksum
from .index.environment import Extent, Namespace, Transaction
from .index.ledger import Ledger
from .io.files import Files, Lanes
from .io.pieces import ReadPiece, Wanted, plan_reads
from .log.append import Appender, Target
from .log.budget import Budget, facts_for
from .log.lifecycle import Live, Log
from .log.readers import Readers
from .log.reclaim import Allowance, Carrier
from .store.namespaces import Identity
from .store.opening import Store, close_store, invalidate, open_store
from .store.quarantine import Quarantine
from .upkeep import Read, Upkeep

logger = logging.getLogger(__name__)

LOOKS_MAX = 3  # of one load: a chunk that moves faster than that is evicted in truth
LOG_PERIOD_S = 10.0  # between two lines about chunks that failed
WRITE_AMPLIFICATION = 1.3
INDEX_SHORTAGE_MAX = 2  # times; an index is made with room to spare, so up to there nobody notices

_COUNTERS = (
    "stored_chunks",
    "stored_bytes",
    "loaded_chunks",
    "loaded_bytes",
    "hits",
    "misses",
    "dropped_chunks",
    "corrupt_chunks",
    "io_errors",
)

_NO_RECORD = Namespace(0, 0, 0, 0, 0, 0)


class NvmeTier:
    """Chunks in a directory on a local drive, shared with other processes.

    Threads: `lookup` and `stats` from any thread; they read memory-mapped pages and never wait for writes.
    Everything else on the event loop that opened the tier. Cancellation: a cancelled store or load returns
    once no thread touches its buffers; the store's chunks are then there or not, each whole. Durability: a
    stored chunk survives a killed process at once, a power loss after `flush` or about a second.
    """

    name = "nvme"

    def __init__(
        self,
        files: Files,
        lanes: Lanes,
        store: Store,
        identity: Identity,
        *,
        budget: Budget,
        chunk_bytes: int,
        write_amplification: float,
    ) -> None:
        self._lanes, self._store = lanes, store
        self._directory, self._index = store.directory, store.index
        self._chunk_bytes = chunk_bytes
        self._budget = budget
        self._log = Log(files, self._directory, self._index)
        self._readers = Readers(files, self._directory, self._index, identity.digest)
        self._quarantine = Quarantine(files, self._directory.quarantine_path)
        self._allowance = Allowance(write_amplification)
        self._appender = Appender(
            files,
            lanes,
            self._index,
            self._log,
            self._directory.facts.index_bytes,
            lambda: self._upkeep.room_changed(),
        )
        self._carrier = Carrier(
            files, lanes, self._directory, self._index, self._log, self._appender, self._allowance
        )
        self._upkeep = Upkeep(lanes, store, self._log, self._appender, self._carrier, self._failed)
        self._files = files
        # Mutable state, changed on the loop only.
        self._enter(identity)
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._calls = 0  # stores, loads and the like under way
        self._idle = asyncio.Event()
        self._idle.set()
        self._logged_s = -LOG_PERIOD_S
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
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
        files: Files | None = None,
    ) -> NvmeTier:
        """Open or create the store at `path` for chunks of up to `chunk_bytes`.

        The cap is that of the whole directory, and the last process to open it sets it for all.

        Raises:
            TierUnavailable: the store cannot be used; the message says why and what to do.
            IdentityMismatch: the namespace on disk names other fields.
        """
        files = files or Files()
        lanes = Lanes()
        stores: list[Store] = []

        def open_it() -> None:
            store = open_store(
                files,
                Path(path),
                capacity_bytes=capacity_bytes,
                reserve_bytes=reserve_bytes,
                identity=identity,
                chunk_bytes=chunk_bytes,
            )
            stores.append(store)

        try:
            await lanes.upkeep(open_it)
        except BaseException:
            try:
                for store in stores:  # opened all the same, while the wait for it was cancelled
                    with contextlib.suppress(OSError, TierError):
                        await lanes.upkeep(partial(close_store, store, identity))
            finally:
                lanes.close()
            raise
        (store,) = stores
        facts = store.directory.facts
        wanted_bytes = facts_for(capacity_bytes, chunk_bytes).index_bytes
        if wanted_bytes > INDEX_SHORTAGE_MAX * facts.index_bytes:
            logger.warning(
                "nvme: %s was made for larger chunks: its index is full when some %d%% of the cap are; for "
                "chunks of %d bytes give the tier another path",
                path,
                100 * facts.index_bytes // wanted_bytes,
                chunk_bytes,
            )
        return NvmeTier(
            files,
            lanes,
            store,
            identity,
            budget=Budget(capacity_bytes, reserve_bytes, facts.segment_bytes, facts.index_bytes),
            chunk_bytes=chunk_bytes,
            write_amplification=write_amplification,
        )

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        """Say for each key whether a load would find it now."""
        if self._closed:
            return [False] * len(keys)
        try:
            return self._index.has(self._namespace, keys)
        except TierError:
            return [False] * len(keys)

    def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Coroutine[Any, Any, Outcome]:
        """Keep each buffer's bytes under its key, in the epoch in force at this very call."""
        # Not a coroutine function: its body would run later, perhaps in the next epoch.
        return self._stored(0 if self._closed else self._scope(), keys, buffers)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Fill each buffer with its key's bytes; a chunk of another length is a miss."""
        with self._call() as allowed:
            if not allowed:
                return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
            failed: dict[ChunkKey, Failure] = {}
            rest = list(zip(keys, buffers, strict=True))
            for _ in range(LOOKS_MAX):
                rest = await self._look(rest, failed)
                if not rest:
                    break
            return self._loaded(keys, buffers, failed)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        """Forget the keys; those removed on request stay forgotten after a power loss too."""
        with self._call() as allowed:
            if not allowed or not keys:
                return
            namespace, checksum = self._namespace, self._checksum
            forget = partial(self._forget, namespace, keys)
            scope, gone = await self._lanes.index(partial(self._index.write, forget))
            if gone and reason is RemoveReason.REQUESTED:
                await self._appender.append_removals(Target(namespace, scope, checksum), gone)

    async def flush(self) -> None:
        """Return when everything stored so far would survive a power loss.

        Raises:
            TierError: the device refused; what was stored may be lost with the power.
        """
        with self._call() as allowed:
            if not allowed:
                return
            try:
                await self._appender.flush()
            except (OSError, TierError) as error:
                raise TierError(self.name, f"what was written may not be durable: {error}") from error

    async def invalidate(self) -> None:
        """Raise the epoch: every older chunk of this namespace is a miss from now on, for every process.

        The weights may have changed, and no field says into what: from here on the tier keeps its chunks in
        a namespace of its own. Nothing is found or kept until the index knows it.
        """
        with self._call() as allowed:
            if not allowed:
                return
            before = self._identity
            self._enter(before if before.is_of_one_process else before.of_one_process())
            await self._lanes.index(partial(invalidate, self._store, before, self._identity))

    def stats(self) -> TierStats:
        """Return the tier's numbers; chunks are this namespace's, bytes the whole directory's."""
        counters = {
            **self._counters,
            "evicted_chunks": self._appender.evicted_chunks + self._carrier.evicted_chunks,
            "carried_chunks": self._carrier.carried_chunks,
            "carried_bytes": self._carrier.carried_bytes,
        }
        counters["io_errors"] += self._appender.io_errors + self._upkeep.io_errors
        namespace = self._record()
        gauges = {"useful_bytes": namespace.useful_bytes}
        used_bytes = self._upkeep.used_bytes
        return TierStats(namespace.chunks, used_bytes, self._budget.capacity_bytes, counters, gauges)

    def watch(self, told: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        """Say which of this namespace's chunks this process has evicted; called on threads of the tier."""
        self._log.reclaimed = partial(self._tell_evicted, told)

    async def close(self) -> None:
        """Finish what is under way and leave the store; idempotent."""
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # Storing.

    async def _stored(self, scope: int, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        with self._call() as allowed:
            if not allowed:
                return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
            now, extents = self._find(keys)
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
        assert max(map(len, new.values())) <= self._chunk_bytes, "chunks are no longer than the tier was told"
        target = Target(self._namespace, scope, self._checksum)
        failed = await self._appender.append(target, list(new.items()), _first)
        size_bytes = sum(len(buffer) for key, buffer in new.items() if key not in failed)
        self._counters["stored_chunks"] += len(new) - len(failed)
        self._counters["stored_bytes"] += size_bytes
        self._allowance.stored(size_bytes)
        if Failure.NO_SPACE in failed.values():
            self._upkeep.room_changed()
        return failed

    def _scope(self) -> int:
        try:
            return self._index.scope_of(self._namespace)
        except TierError:
            return 0

    def _find(self, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        try:
            return self._index.find(self._namespace, keys)
        except TierError as error:
            self._failed(f"{error}")
            return 0, [None] * len(keys)

    # Loading.

    async def _look(
        self, chunks: Sequence[tuple[ChunkKey, Buffer]], failed: dict[ChunkKey, Failure]
    ) -> list[tuple[ChunkKey, Buffer]]:
        """Load what the index has; returns what was no longer where the index had said."""
        wanted, scope = self._wanted(chunks, failed)
        pieces = plan_reads(self._files, self._readers, self._checksum, wanted)
        await self._lanes.load(pieces)
        condemned = self._collect(pieces, scope, failed)
        if condemned:
            await self._condemn(scope, condemned)
        # Reclaimed between the question and the read; it may have been carried to another place.
        return [(chunk.key, chunk.buffer) for chunk in wanted if failed.get(chunk.key) is Failure.MISSING]

    def _wanted(
        self, chunks: Sequence[tuple[ChunkKey, Buffer]], failed: dict[ChunkKey, Failure]
    ) -> tuple[list[Wanted], int]:
        scope, extents = self._find([key for key, _ in chunks])
        wanted = []
        for (key, buffer), extent in zip(chunks, extents, strict=True):
            failed.pop(key, None)
            if extent is None or extent.length_bytes != len(buffer):
                failed[key] = Failure.MISSING
            else:
                wanted.append(Wanted(key, extent, buffer))
        return wanted, scope

    def _collect(
        self, pieces: Sequence[ReadPiece], scope: int, failed: dict[ChunkKey, Failure]
    ) -> list[tuple[Wanted, Failure]]:
        """Sort out what the pieces found; returns the chunks that are to be dropped, and why.

        Where others of the same load were read, one that cannot be read lies on a bad place of the drive:
        kept, it would fail every load and could not be stored anew. Where none was, the drive is what fails.
        """
        bad, read_count = [], 0
        for piece in pieces:
            self._counters["io_errors"] += len(piece.errors)
            for position, wanted in enumerate(piece.chunks):
                failure = piece.failed.get(position)
                if failure is None:
                    self._upkeep.count(Read(scope, wanted.key, wanted.extent))
                    read_count += 1
                    continue
                failed[wanted.key] = failure
                if failure in (Failure.CORRUPT, Failure.IO_ERROR):
                    bad.append((wanted, failure))
        return [(wanted, why) for wanted, why in bad if read_count or why is Failure.CORRUPT]

    def _loaded(
        self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer], failed: dict[ChunkKey, Failure]
    ) -> Outcome:
        outcome = Outcome.of(keys, failed)
        size_bytes = sum(len(buffer) for key, buffer in zip(keys, buffers, strict=True) if key not in failed)
        for name, count in (
            ("loaded_chunks", len(outcome.succeeded)),
            ("loaded_bytes", size_bytes),
            ("hits", len(outcome.succeeded)),
            ("misses", len(keys) - len(outcome.succeeded)),
        ):
            self._counters[name] += count
        return outcome

    async def _condemn(self, scope: int, condemned: Sequence[tuple[Wanted, Failure]]) -> None:
        """Drop chunks that are no good; of those that failed their checksum the buffers hold the evidence."""
        corrupt = [wanted for wanted, why in condemned if why is Failure.CORRUPT]
        self._counters["corrupt_chunks"] += len(corrupt)
        first, why = condemned[0]
        what = "failed its checksum" if why is Failure.CORRUPT else "cannot be read"
        self._failed(f"chunk {first.key.hex()[:16]} in segment {first.extent.segment} {what}; it is dropped")
        drop = partial(self._drop_with_evidence, scope, [wanted for wanted, _ in condemned], corrupt)
        try:
            await self._lanes.index(partial(self._index.write, drop))
        except (OSError, TierError) as error:
            self._failed(f"bad chunks could not be dropped: {error}")

    def _drop_with_evidence(
        self, scope: int, condemned: Sequence[Wanted], corrupt: Sequence[Wanted], txn: Transaction
    ) -> None:
        ledger = Ledger(txn)
        for wanted in condemned:
            extent = ledger.extent(scope, wanted.key)
            if extent is not None and extent[:4] == wanted.extent[:4]:
                ledger.forget(scope, wanted.key, extent)
        ledger.close()
        # Inside the transaction, so that one process at a time keeps the quarantine within its bound.
        limit_bytes = self._log.budget(txn).quarantine_bytes
        for wanted in corrupt:
            facts = {"namespace": self._namespace.hex(), "key": wanted.key.hex(), **wanted.extent._asdict()}
            with contextlib.suppress(OSError):  # the chunk is dropped all the same
                self._quarantine.add({**facts, "found_s": int(time.time())}, wanted.buffer, limit_bytes)

    def _forget(
        self, digest: bytes, keys: Sequence[ChunkKey], txn: Transaction
    ) -> tuple[int, list[ChunkKey]]:
        namespace = txn.namespace(digest)
        scope, gone = namespace.scope if namespace else 0, []
        ledger = Ledger(txn)
        for key in dict.fromkeys(keys):
            extent = ledger.extent(scope, key)
            if extent is not None:
                ledger.forget(scope, key, extent)
                gone.append(key)
        ledger.close()
        return scope, gone

    # Calls and their end.

    def _enter(self, identity: Identity) -> None:
        """Keep and find chunks under this identity from now on."""
        self._identity = identity
        self._namespace = self._readers.namespace = identity.digest
        self._checksum = ChunkChecksum(self._namespace)

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
        await self._idle.wait()
        await self._upkeep.stop()
        self._readers.close()
        self._last_record = self._record()
        try:
            await self._lanes.upkeep(partial(close_store, self._store, self._identity))
        except (OSError, TierError) as error:
            self._failed(f"close: {error}")
        self._lanes.close()

    def _record(self) -> Namespace:
        if self._last_record is not None:
            return self._last_record
        try:
            with self._index.read() as txn:
                return txn.namespace(self._namespace) or _NO_RECORD
        except TierError:
            return _NO_RECORD

    def _tell_evicted(
        self, told: Callable[[Sequence[ChunkKey], RemoveReason], None], live: Sequence[Live]
    ) -> None:
        keys = [one.key for one in live if one.namespace == self._namespace]
        there = self._index.has(self._namespace, keys)
        told([key for key, found in zip(keys, there, strict=True) if not found], RemoveReason.EVICTED)

    def _failed(self, message: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_PERIOD_S:
            self._logged_s = now_s
            logger.warning("%s: %s", self.name, message)


def _first(_key: ChunkKey, place: Extent, now: Extent | None) -> Extent | None:
    """The first to store a key wins; the other's bytes are dead weight until their segment is reclaimed."""
    return place if now is None else None
