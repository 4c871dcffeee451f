"""Opens and closes a store, so that directory, index and namespaces agree."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from ...base import ChunkKey
from ...errors import TierError, TierUnavailable
from ..format.codec import table_bytes
from ..index.environment import Index
from ..index.errors import IndexDamaged
from ..index.leftovers import remove_in_background
from ..index.memory import SHARED_MEMORY
from ..index.records import KEY_BYTES_MAX
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES, aligned, blocks_of
from ..io.files import Files
from ..log.budget import Budget, Facts, cap_holding, facts_for
from ..log.room import UNIT_BYTES
from ..wear.record import ENDURANCE
from .catchup import CatchUp
from .directory import LOCK, QUARANTINE_BYTE, StoreDirectory, StoreGone, mapped_os_errors
from .facts import FACTS
from .frame import is_kept
from .full import with_room
from .home import Sizes, index_alone, is_index_lost, join_index, leave_alone
from .namespaces import Identity
from .quarantine import Quarantine
from .scopes import drop_namespace, drop_unneeded, open_namespace, raise_epoch

logger = logging.getLogger(__name__)

CATCH_UP_MAX = 16384  # entries read at once when a store is opened: small stores are whole
CHUNK_BYTES_MIN = 512  # of the store's largest: twice a checkpoint's share of a chunk has to fit beside it
CATCH_UP_S = 0.5  # and no longer than that, on a slow drive


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store."""

    directory: StoreDirectory
    index: Index
    catch_up: CatchUp


def is_store(root: Path) -> bool:
    """Whether a store is there, also one that has lost its facts."""
    return (root / FACTS).is_file() or ((root / LOCK).is_file() and (root / "segments").is_dir())


def open_store(
    files: Files,
    root: Path,
    *,
    capacity_bytes: int,
    reserve_bytes: int,
    identity: Identity,
    chunk_bytes: int,
    endurance_bytes: int = 0,
    place: Path = SHARED_MEMORY,
) -> Store:
    """Open or create the store and the identity's namespace in it; others wait meanwhile.

    It may serve before all that the log has is found: `Store.catch_up` has the rest to do. `place` is where
    the index lies.

    Raises:
        TierUnavailable: the store cannot be used; the message says why.
        IdentityMismatch: the namespace on the drive names other fields.
    """
    wanted = Budget(capacity_bytes, reserve_bytes, 0, chunk_bytes)
    opened = partial(_opened, files, root, wanted, endurance_bytes, identity, place)
    try:
        return opened()
    except IndexDamaged as error:
        logger.warning("%s; %s is opened with a new one", error, root)
    try:
        return opened()  # who was alone has noted the damage, and makes the index anew
    except IndexDamaged as error:
        message = f"{root} is in use, and its index is damaged ({error}); stop those who use it"
        raise TierUnavailable("nvme", message) from error


def _opened(
    files: Files, root: Path, wanted: Budget, endurance_bytes: int, identity: Identity, place: Path
) -> Store:
    """`wanted` has no size of segments yet: that is the store's."""
    capacity_bytes, chunk_bytes = wanted.capacity_bytes, wanted.chunk_bytes
    there = StoreDirectory.look(root)
    refuse_small(there, capacity_bytes, chunk_bytes)
    directory = StoreDirectory.open(files, root, facts_for(capacity_bytes, chunk_bytes), place)
    with contextlib.ExitStack() as undo:
        undo.callback(directory.give_up)
        with mapped_os_errors(root):
            unit_bytes = _unit_bytes(root)
            refuse_small(there, capacity_bytes, chunk_bytes, unit_bytes)
            refuse_small(directory.facts, capacity_bytes, chunk_bytes)  # another may have made it since
            refuse_large(directory.facts, chunk_bytes)
            files.reached("opening")
            grows_to = Sizes.of(capacity_bytes, chunk_bytes)
            store = _with_index(directory, undo, lambda: index_alone(directory, grows_to))
            files.reached("index opened")
            if store.index.is_read_only:
                raise TierUnavailable(
                    "nvme", f"{root} is held by another process, which is paused; let it go on"
                )
            with_room(
                directory.segments,
                store.index,
                partial(open_namespace, directory, store.index, identity),
            )
            budget = wanted._replace(segment_bytes=directory.facts.segment_bytes, unit_bytes=unit_bytes)
            _set_cap(directory, store.index, budget, endurance_bytes)
            remove_orphans(directory, store.index)
            if directory.alone:
                _begin_catch_up(store)
                drop_unneeded(directory, store.index, identity)
            directory.ready()
        undo.pop_all()
    files.reached("opened")
    remove_in_background(place, LOCK)
    return store


def open_existing(files: Files, root: Path, *, place: Path = SHARED_MEMORY) -> Store:
    """Open a store that is there, for tools: beside the servers that use it, in no namespace.

    What the index lacks is read from the log, if nobody else has the store open.

    Raises:
        TierUnavailable: there is no store, or it cannot be used.
    """
    return _open_existing(files, root, place, index_alone)


def open_untouched(files: Files, root: Path, *, place: Path = SHARED_MEMORY) -> Store:
    """Open a store that is there as it is.

    Raises:
        IndexDamaged: the index is lost, and nobody else has the store open.
        TierUnavailable: there is no store, or it cannot be used.
    """
    return _open_existing(files, root, place, _index_there)


def open_rebuilt(files: Files, root: Path, *, place: Path = SHARED_MEMORY) -> Store:
    """Open a store that is there with an index made anew from its segments.

    Raises:
        TierUnavailable: somebody else has it open, there is no store, or it cannot be used.
    """

    def anew(directory: StoreDirectory, sizes: Sizes) -> Index:
        files.unlink(directory.checkpoint_path)
        return index_alone(directory, sizes, anew=True)

    store = _open_existing(files, root, place, anew)
    if not store.directory.alone:
        close_store(store)
        raise TierUnavailable("nvme", f"{root} is in use; stop the processes that use it")
    return store


def _open_existing(
    files: Files, root: Path, place: Path, open_alone: Callable[[StoreDirectory, Sizes], Index]
) -> Store:
    directory = StoreDirectory.open(files, root, None, place)
    with contextlib.ExitStack() as undo:
        undo.callback(directory.give_up)
        with mapped_os_errors(root):
            there_bytes = len(directory.segments.paths()) * directory.facts.segment_bytes
            sizes = Sizes.of(there_bytes, directory.facts.chunk_bytes)
            store = _with_index(directory, undo, lambda: open_alone(directory, sizes))
            if directory.alone:
                store.catch_up.claim()
                store.catch_up.finish()
            with store.index.read() as txn:
                capacity_bytes = txn.number("capacity_bytes")
            if not capacity_bytes and not store.index.is_read_only:
                store.index.write(lambda txn: _cap_if_unknown(txn, directory.facts))
            directory.ready()
        undo.pop_all()
    return store


def _index_there(directory: StoreDirectory, sizes: Sizes) -> Index:
    lost = is_index_lost(directory)
    if lost:
        raise IndexDamaged("nvme", lost)
    return index_alone(directory, sizes, tidy=False)


def _with_index(
    directory: StoreDirectory, undo: contextlib.ExitStack, open_alone: Callable[[], Index]
) -> Store:
    index = open_alone() if directory.alone else join_index(directory)
    store = Store(directory, index, CatchUp(directory, index))
    undo.push(partial(_leave_unopened, store))
    return store


def _begin_catch_up(store: Store) -> None:
    """Hold what is still to be read, and read a bounded part of it: of a small store, all."""
    store.catch_up.claim()
    left, end_s = CATCH_UP_MAX, time.monotonic() + CATCH_UP_S
    while left > 0 and time.monotonic() < end_s and (count := store.catch_up.step()):
        left -= count


def close_store(store: Store, identity: Identity | None = None) -> None:
    """Leave the store; its last user leaves a checkpoint, so that the next open finds all.

    A namespace that is this process' own goes with it, if its identity is given.
    """
    directory, index = store.directory, store.index
    try:
        store.catch_up.close()
        try:
            if identity is not None and identity.is_of_one_process:
                drop_namespace(directory, index, identity)
        finally:
            if directory.last_user_leaving():
                leave_alone(directory, index)
    finally:
        index.close()
        directory.close()


def _leave_unopened(
    store: Store, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Leave the index of an open that fails; the error that made it fail is the one to raise.

    One that nobody foresaw may come of damage, so the next open trusts the index no more.
    """
    with contextlib.suppress(OSError, TierError):
        store.index.damaged |= isinstance(error, Exception) and not isinstance(error, (OSError, TierError))
        store.catch_up.close()
        if store.directory.alone:
            leave_alone(store.directory, store.index)
    store.index.close()


def invalidate(store: Store, identity: Identity, successor: Identity) -> None:
    """Put every chunk of the namespace out of sight at once, in every process, and make the successor's."""
    directory, index = store.directory, store.index
    with_room(directory.segments, index, partial(raise_epoch, directory, index, identity))
    if successor.digest != identity.digest:
        with_room(directory.segments, index, partial(open_namespace, directory, index, successor))


def _unit_bytes(root: Path) -> int:
    """What a small file takes of the file system: more than a block where that gives room in large units."""
    return max(BLOCK_BYTES, *((root / name).stat().st_blocks * 512 for name in (FACTS, LOCK)))


def refuse_small(
    facts: Facts | None, capacity_bytes: int, chunk_bytes: int, unit_bytes: int = BLOCK_BYTES
) -> None:
    """Refuse a cap under which the store of these facts, or else a new one, holds no chunks.

    Raises:
        TierUnavailable: names the least cap that works, or the least chunk, below which no cap does.
    """
    if chunk_bytes < CHUNK_BYTES_MIN:
        raise TierUnavailable(
            "nvme", f"chunks of {chunk_bytes} bytes are too small; the least that works is {CHUNK_BYTES_MIN}"
        )

    def least_under(cap_bytes: int) -> int:
        sizes = facts or facts_for(cap_bytes, chunk_bytes)
        budget = Budget(cap_bytes, 0, sizes.segment_bytes, chunk_bytes, unit_bytes=unit_bytes)
        return budget.least_bytes

    least_bytes = least_under(capacity_bytes)
    if capacity_bytes >= least_bytes:
        return
    # Some shares grow with the cap itself: go on until the number that is named is one that works.
    while (grown := least_under(least_bytes)) > least_bytes:
        least_bytes = grown
    segments = ""
    if facts is not None and facts.segment_bytes > facts_for(capacity_bytes, chunk_bytes).segment_bytes:
        segments = f" in this store's segments of {facts.segment_bytes} bytes"
        segments += " (a directory made anew has smaller ones)"
    raise TierUnavailable(
        "nvme",
        f"a capacity of {capacity_bytes} bytes is too small for chunks of {chunk_bytes} bytes{segments}; "
        f"the least that works is {least_bytes}",
    )


def refuse_large(facts: Facts, chunk_bytes: int) -> None:
    """Refuse chunks that are too long for the segments that a store was made with.

    Raises:
        TierUnavailable: they are.
    """
    longest_key = table_bytes([ChunkKey(KEY_BYTES_MAX)])
    overhead_blocks = 2 + 2 * blocks_of(longest_key)  # header, footer, table and its copy
    if aligned(chunk_bytes) + overhead_blocks * BLOCK_BYTES > facts.segment_bytes:
        raise TierUnavailable(
            "nvme",
            f"chunks of {chunk_bytes} bytes do not fit the segments of {facts.segment_bytes} bytes that this "
            f"store was made with; give the tier another directory",
        )


def _set_cap(directory: StoreDirectory, index: Index, budget: Budget, endurance_bytes: int) -> None:
    """Set the cap for all who use the store, and what the drive is rated for."""
    wanted = {
        "capacity_bytes": budget.capacity_bytes,
        "reserve_bytes": budget.reserve_bytes,
        "chunk_bytes": budget.chunk_bytes,
        UNIT_BYTES: budget.unit_bytes,
        ENDURANCE: endurance_bytes,
    }
    with index.read() as txn:
        is_set = all(txn.number(name) == value for name, value in wanted.items())
    if not is_set:
        index.write(lambda txn: _set_numbers(txn, wanted))
    # Evidence that cannot be removed is no reason not to serve.
    with contextlib.suppress(OSError, TierUnavailable, StoreGone), directory.claimed(QUARANTINE_BYTE):
        Quarantine(directory.files, directory.quarantine_path).trim(budget.quarantine_bytes)


def _set_numbers(txn: Transaction, numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        txn.set_number(name, value)


def _cap_if_unknown(txn: Transaction, facts: Facts) -> None:
    """Cap a store whose new index does not know the cap: until a server sets it, it grows no further."""
    if not txn.number("capacity_bytes"):
        taken_bytes = txn.totals().allocated_bytes
        txn.set_number("capacity_bytes", cap_holding(taken_bytes, txn.namespaces_count(), facts))


def remove_orphans(directory: StoreDirectory, index: Index) -> None:
    """Remove files without a record, and records without a file: a process died between the two."""
    segments = directory.segments
    with index.read() as txn:
        known = txn.segments()
    numbers = segments.paths().keys()
    lost = known.keys() - numbers
    if lost:
        index.write(lambda txn: _drop_records(txn, lost))
    for number in numbers - known.keys():
        with contextlib.suppress(OSError), segments.claimed(number) as file:
            # Whoever makes a segment claims its file before its record can be seen.
            if file is not None and _is_orphan(index, number):
                file.read_header()  # where the drive refuses that, it may hold chunks
                segments.unlink(number)


def _drop_records(txn: Transaction, numbers: Collection[int]) -> None:
    """Drop those with nothing in them; no file of the same number will ever be there again."""
    for number in numbers:
        segment = txn.segment(number)
        if segment is not None and not segment.live_chunks:
            txn.drop_segment(number)


def _is_orphan(index: Index, number: int) -> bool:
    with index.read() as txn:
        return txn.segment(number) is None and not is_kept(txn, number)
