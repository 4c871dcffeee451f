"""Loads chunks from the log, checks them, and removes those that are no good."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial

from ..base import Buffer, ChunkKey, Failure, Outcome
from ..errors import TierError
from .failures import FailureLog
from .index.errors import IndexStarved
from .index.ledger import Ledger
from .index.records import Extent
from .index.transaction import Transaction
from .io.lanes import Lanes
from .io.pieces import Wanted
from .io.plan import Read as PlannedRead
from .io.plan import plan_reads
from .log.readers import Readers
from .log.room import Room
from .presence import Presence
from .reads import Read, Reads
from .store.directory import QUARANTINE_BYTE
from .store.opening import Store
from .store.quarantine import Quarantine
from .view import View

_WHAT = {Failure.CORRUPT: "failed its checksum", Failure.GONE: "has lost its file"}

LOOKS_MAX = 3  # of one load: a chunk that moves faster than that is evicted in truth


class Loader:
    """Loads chunks of the view's namespace. One event loop.

    Attributes:
        counters: what was loaded, and what went wrong.
    """

    def __init__(
        self,
        lanes: Lanes,
        store: Store,
        view: View,
        room: Room,
        reads: Reads,
        failures: FailureLog,
        presence: Presence,
    ) -> None:
        directory = store.directory
        self._lanes, self._files, self._index = lanes, directory.files, store.index
        self._directory = directory
        self._view, self._room, self._reads, self._failures = view, room, reads, failures
        self._presence = presence
        self._readers = Readers(directory.segments, store.index, view.digest)
        self._quarantine = Quarantine(directory.files, directory.quarantine_path)
        # Mutable state, changed on the loop only.
        self.counters = dict.fromkeys(
            ("loaded_chunks", "loaded_bytes", "hits", "misses", "corrupt_chunks", "io_errors"), 0
        )

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Fill each buffer with its key's bytes; a chunk of another length is a miss."""
        failed: dict[ChunkKey, Failure] = {}
        rest = list(zip(keys, buffers, strict=True))
        try:
            for _ in range(LOOKS_MAX):
                rest = await self._look(rest, failed)
                if not rest:
                    break
        except IndexStarved as error:
            starved = self.starved([key for key, _ in rest], error)
            failed.update(starved.failed)
            outcome = self._loaded(keys, buffers, failed)
            return outcome if len(rest) < len(keys) else starved
        return self._loaded(keys, buffers, failed)

    def find(self, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        """The scope in force and each key's extent; scope 0 where the index cannot say, which is logged.

        Raises:
            IndexStarved: it could not be asked.
        """
        try:
            return self._view.find(keys)
        except IndexStarved:
            raise
        except TierError as error:
            self._failures.add(f"{error}")
            return 0, [None] * len(keys)

    def starved(self, keys: Sequence[ChunkKey], error: IndexStarved) -> Outcome:
        """What becomes of a call that could not ask the index: no sample of the drive."""
        self._failures.add(f"{error}")
        return Outcome(failed=dict.fromkeys(keys, error.failure), is_sample=False)

    def follow(self) -> None:
        """Read from the namespace that the view has entered."""
        self._readers.namespace = self._view.digest

    def close(self) -> None:
        """Close the segment files that are open for reading."""
        self._readers.close()

    async def _look(
        self, chunks: Sequence[tuple[ChunkKey, Buffer]], failed: dict[ChunkKey, Failure]
    ) -> list[tuple[ChunkKey, Buffer]]:
        """Load what the index has; returns what was no longer where the index had said."""
        wanted, scope = self._wanted(chunks, failed)
        pieces = plan_reads(self._files, self._readers, self._view.checksum, wanted)
        await self._lanes.load(pieces)
        condemned = self._collect(pieces, scope, failed)
        if Failure.GONE in failed.values():
            await self._lanes.upkeep(self._presence.look)
        if condemned and not self._presence.is_gone:
            await self._condemn(scope, condemned)
        # Reclaimed between the question and the read; it may have been carried to another place.
        return [(chunk.key, chunk.buffer) for chunk in wanted if failed.get(chunk.key) is Failure.MISSING]

    def _wanted(
        self, chunks: Sequence[tuple[ChunkKey, Buffer]], failed: dict[ChunkKey, Failure]
    ) -> tuple[list[Wanted[Extent]], int]:
        scope, extents = self.find([key for key, _ in chunks])
        wanted: list[Wanted[Extent]] = []
        for (key, buffer), extent in zip(chunks, extents, strict=True):
            failed.pop(key, None)
            if extent is None or extent.length_bytes != len(buffer):
                failed[key] = Failure.MISSING
            else:
                wanted.append(Wanted(key, extent, buffer))
        return wanted, scope

    def _collect(
        self, pieces: Sequence[PlannedRead[Extent]], scope: int, failed: dict[ChunkKey, Failure]
    ) -> list[tuple[Wanted[Extent], Failure]]:
        """Sort out what the pieces found; returns the chunks that are to be dropped, and why.

        Where others of the same load were read, one whose read the drive refuses lies on a bad place: kept,
        it would fail every load and could not be stored anew. Where none was, the drive is what fails. A
        limit that was reached, or an open that was refused, says nothing about what is stored.
        """
        bad, read_count = [], 0
        for piece in pieces:
            self.counters["io_errors"] += len(piece.errors)
            for position, wanted in enumerate(piece.chunks):
                failure = piece.failed.get(position)
                if failure is None:
                    self._reads.add(Read(scope, wanted.key, wanted.place))
                    read_count += 1
                    continue
                failed[wanted.key] = failure
                if failure in (Failure.CORRUPT, Failure.GONE) or position in piece.unreadable:
                    bad.append((wanted, failure))
            if piece.errors:
                self._failures.add(f"a chunk could not be read: {piece.errors[0]}")
        return [(wanted, why) for wanted, why in bad if read_count or why is not Failure.IO_ERROR]

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
            self.counters[name] += count
        return outcome

    async def _condemn(self, scope: int, condemned: Sequence[tuple[Wanted[Extent], Failure]]) -> None:
        """Remove bad chunks. The buffers hold the evidence of those that failed their checksum."""
        # A segment's file that is gone, in a directory that is there, is damage like any other.
        corrupt = [wanted for wanted, why in condemned if why is not Failure.IO_ERROR]
        self.counters["corrupt_chunks"] += len(corrupt)
        first, why = condemned[0]
        what = _WHAT.get(why, "cannot be read")
        self._failures.add(
            f"chunk {first.key.hex()[:16]} in segment {first.place.segment} {what}; it is dropped"
        )
        try:
            drop = partial(_drop, scope, [wanted for wanted, _ in condemned])
            await self._lanes.index(partial(self._index.write, drop))
            if corrupt:
                await self._lanes.index(partial(self._keep_evidence, corrupt))
        except (OSError, TierError) as error:
            self._failures.add(f"bad chunks could not be dropped: {error}")

    def _keep_evidence(self, corrupt: Sequence[Wanted[Extent]]) -> None:
        """Keep what was found in place of the chunks, unless another process holds it for long."""
        with self._index.read() as txn:
            limit_bytes = self._room.budget(txn).quarantine_bytes
        with self._directory.claimed(QUARANTINE_BYTE):
            for wanted in corrupt:
                place = wanted.place._asdict()
                facts = {"namespace": self._view.digest.hex(), "key": wanted.key.hex(), **place}
                with contextlib.suppress(OSError):  # the chunk is dropped all the same
                    facts["found_s"] = int(time.time())
                    self._quarantine.add(facts, wanted.buffer, limit_bytes)


def _drop(scope: int, condemned: Sequence[Wanted[Extent]], txn: Transaction) -> None:
    ledger = Ledger(txn)
    for wanted in condemned:
        extent = ledger.extent(scope, wanted.key)
        if extent is not None and extent[:4] == wanted.place[:4]:
            ledger.forget(scope, wanted.key, extent)
    ledger.close()
