"""Opens and closes a store, so that directory, index and namespaces agree."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...base import ChunkKey
from ...errors import TierError, TierUnavailable
from ..format.codec import table_bytes
from ..index.environment import Index, IndexDamaged
from ..index.records import Namespace, SegmentState
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES, aligned, blocks_of
from ..io.files import Files
from ..log.budget import Budget, Facts, cap_holding, facts_for
from .directory import StoreDirectory, mapped_os_errors
from .namespaces import Identity, NamespaceFile
from .quarantine import Quarantine
from .rebuild import rebuild

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store."""

    directory: StoreDirectory
    index: Index


def is_store(root: Path) -> bool:
    return (root / "kvtier.json").is_file()


def open_store(
    files: Files,
    root: Path,
    *,
    capacity_bytes: int,
    reserve_bytes: int,
    identity: Identity,
    chunk_bytes: int,
) -> Store:
    """Open or create the store and the identity's namespace in it; others wait meanwhile.

    Raises:
        TierUnavailable: the store cannot be used; the message says why.
        IdentityMismatch: the namespace on the drive names other fields.
    """
    refuse_small(StoreDirectory.look(root), capacity_bytes, chunk_bytes)
    directory = StoreDirectory.open(files, root, facts_for(capacity_bytes, chunk_bytes))
    with contextlib.ExitStack() as undo:
        undo.callback(directory.give_up)
        budget = Budget(capacity_bytes, reserve_bytes, *directory.facts[1:])
        refuse_small(directory.facts, capacity_bytes, chunk_bytes)
        refuse_large(directory.facts, chunk_bytes)
        files.reached("opening")
        with mapped_os_errors(root):
            index = _open_index(directory)
            undo.callback(_leave_unopened, directory, index)
            files.reached("index opened")
            _open_namespace(directory, index, identity)
            index.write(lambda txn: _set_cap(txn, directory, budget))
            index.write(lambda txn: _remove_orphans(txn, directory))
            if directory.alone:
                _drop_unneeded(directory, index, identity)
            directory.ready()
        undo.pop_all()
    files.reached("opened")
    return Store(directory, index)


def open_existing(files: Files, root: Path) -> Store:
    """Open a store that is there, for tools: beside the servers that use it, in no namespace.

    A lost or torn index is rebuilt, if nobody else has the store open.

    Raises:
        TierUnavailable: there is no store, or it cannot be used.
    """
    return _open_existing(files, root, _open_index)


def open_untouched(files: Files, root: Path) -> Store:
    """Open a store that is there as it is.

    Raises:
        IndexDamaged: the index is lost or torn, and nobody else has the store open.
        TierUnavailable: there is no store, or it cannot be used.
    """
    return _open_existing(files, root, _whole_index)


def open_rebuilt(files: Files, root: Path) -> Store:
    """Open a store that is there with an index made anew from its segments.

    Raises:
        TierUnavailable: somebody else has it open, there is no store, or it cannot be used.
    """
    return _open_existing(files, root, _sole_index_anew)


def _open_existing(files: Files, root: Path, open_index: Callable[[StoreDirectory], Index]) -> Store:
    directory = StoreDirectory.open(files, root, None)
    with contextlib.ExitStack() as undo:
        undo.callback(directory.give_up)
        with mapped_os_errors(root):
            index = open_index(directory)
            undo.callback(_leave_unopened, directory, index)
            index.write(lambda txn: _cap_if_unknown(txn, directory.facts))
            directory.ready()
        undo.pop_all()
    return Store(directory, index)


def close_store(store: Store, identity: Identity | None = None) -> None:
    """Leave the store; its last user leaves the index synced, so that the next open can trust it.

    A namespace that is this process' own goes with it, if its identity is given.
    """
    directory, index = store.directory, store.index
    try:
        if identity is not None and identity.is_of_one_process:
            _drop_namespace(directory, index, identity)
        _leave_index(directory, index, last=directory.last_user_leaving())
    finally:
        index.close()
        directory.close()


def _leave_index(directory: StoreDirectory, index: Index, *, last: bool) -> None:
    try:
        if last:
            index.sync()
    finally:
        index.close()
    if last:
        directory.unmark()


def _leave_unopened(directory: StoreDirectory, index: Index) -> None:
    """Leave the index of an open that fails; the error that made it fail is the one to raise."""
    with contextlib.suppress(OSError, TierError):
        _leave_index(directory, index, last=directory.alone)


def invalidate(store: Store, identity: Identity, successor: Identity) -> None:
    """Put every chunk of the namespace out of sight at once, in every process, and make the successor's."""
    store.index.write(lambda txn: _raise_epoch(txn, identity.digest))
    store.directory.files.reached("epoch raised")
    # The index first: `scope` in the file must never name a scope that the index could give away again.
    store.index.write(lambda txn: _write_namespace(txn, store.directory, identity))
    if successor.digest != identity.digest:
        _open_namespace(store.directory, store.index, successor)


def refuse_small(facts: Facts | None, capacity_bytes: int, chunk_bytes: int) -> None:
    """Refuse a cap under which the store of these facts, or else a new one, holds no chunks.

    Raises:
        TierUnavailable: names the least cap that works.
    """

    def least_under(cap_bytes: int) -> int:
        sizes = facts or facts_for(cap_bytes, chunk_bytes)
        return Budget(cap_bytes, 0, sizes.segment_bytes, sizes.index_bytes).least_bytes

    least_bytes = least_under(capacity_bytes)
    if capacity_bytes >= least_bytes:
        return
    # Some shares grow with the cap itself: go on until the number that is named is one that works.
    while (grown := least_under(least_bytes)) > least_bytes:
        least_bytes = grown
    raise TierUnavailable(
        "nvme",
        f"a capacity of {capacity_bytes} bytes is too small for chunks of {chunk_bytes} bytes; "
        f"the least that works is {least_bytes}",
    )


def refuse_large(facts: Facts, chunk_bytes: int) -> None:
    """Refuse chunks that are too long for the segments that a store was made with.

    Raises:
        TierUnavailable: they are.
    """
    longest_key = table_bytes([ChunkKey(256)])
    overhead_blocks = 2 + 2 * blocks_of(longest_key)  # header, footer, table and its copy
    if aligned(chunk_bytes) + overhead_blocks * BLOCK_BYTES > facts.segment_bytes:
        raise TierUnavailable(
            "nvme",
            f"chunks of {chunk_bytes} bytes do not fit the segments of {facts.segment_bytes} bytes that this "
            f"store was made with; give the tier another directory",
        )


def _open_index(directory: StoreDirectory) -> Index:
    try:
        return _whole_index(directory)
    except IndexDamaged as error:
        if directory.segments.paths():
            logger.warning("%s; rebuilding the index of %s", error, directory.root)
    return _index_anew(directory)


def _whole_index(directory: StoreDirectory) -> Index:
    try:
        return _trusted_index(directory)
    except IndexDamaged as error:
        if not directory.alone:
            raise TierUnavailable("nvme", f"{error}, and other processes use the store; stop them") from error
        raise


def _sole_index_anew(directory: StoreDirectory) -> Index:
    if not directory.alone:
        raise TierUnavailable("nvme", f"other processes use {directory.root}; stop them to rebuild its index")
    return _index_anew(directory)


def _index_anew(directory: StoreDirectory) -> Index:
    for path in directory.index_path.glob("*.mdb"):
        directory.files.unlink(path)
    directory.mark()  # now that the one which may be torn is gone
    index = Index.open(directory.index_path, directory.facts.index_bytes)
    try:
        rebuild(directory, index)
    except BaseException:
        index.close()
        raise
    return index


def _trusted_index(directory: StoreDirectory) -> Index:
    if directory.alone and not directory.index_is_trusted():
        raise IndexDamaged("nvme", "the index was in use when the machine stopped")
    directory.mark()
    index = Index.open(directory.index_path, directory.facts.index_bytes)
    try:
        with index.read() as txn:
            uuid = txn.store_uuid()
        if uuid != directory.facts.store:
            raise IndexDamaged("nvme", "the index is missing, unfinished or another store's")
    except BaseException:
        index.close()
        raise
    return index


def _open_namespace(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    if directory.namespaces.compared(identity) is None:
        _log_relatives(directory, identity)
        index.write(lambda txn: _write_namespace(txn, directory, identity))
        directory.files.reached("namespace written")
    index.write(lambda txn: _ensure_scope(txn, identity.digest))


def _log_relatives(directory: StoreDirectory, identity: Identity) -> None:
    for other in directory.namespaces.read().values():
        if other.identity.label == identity.label:
            differences = "; ".join(identity.differences(other.identity))
            logger.info(
                "nvme: %s starts empty: chunks of the same name differ: %s", identity.label, differences
            )


def _drop_unneeded(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Drop all other namespaces that nothing is lost with. Call it while nobody else has the store open."""
    files = directory.namespaces.read()

    def drop(txn: Transaction) -> list[bytes]:
        records = txn.namespaces()
        digests = (records.keys() | files.keys()) - {identity.digest}
        unneeded = [one for one in digests if _is_unneeded(txn, records.get(one), files.get(one))]
        for digest in unneeded:
            txn.drop_namespace(digest)
        return unneeded

    for digest in index.write(drop):
        directory.namespaces.remove(digest)


def _is_unneeded(txn: Transaction, record: Namespace | None, file: NamespaceFile | None) -> bool:
    """Whether it was one process' own, which has ended, or has no chunks and never had an older epoch.

    Chunks of an older epoch may lie in segments also where the index knows of none, and only the epoch in
    force keeps a rebuild from bringing them back.
    """
    if file is not None and file.identity.is_of_one_process:
        return True
    if (record is not None and record.epoch) or (file is not None and file.epoch):
        return False
    return record is None or next(txn.extents(record.scope), None) is None


def _drop_namespace(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Drop the namespace: its chunks are misses at once, and leave with their segments."""
    index.write(lambda txn: txn.drop_namespace(identity.digest))
    directory.namespaces.remove(identity.digest)


def _ensure_scope(txn: Transaction, digest: bytes) -> None:
    if txn.namespace(digest) is None:
        txn.put_namespace(digest, Namespace(txn.next_number("scope"), 0, 0, 0, 0, 0))


def _raise_epoch(txn: Transaction, digest: bytes) -> None:
    before = txn.namespace(digest)
    epoch = before.epoch + 1 if before else 1
    txn.put_namespace(digest, Namespace(txn.next_number("scope"), epoch, 0, 0, 0, 0))


def _write_namespace(txn: Transaction, directory: StoreDirectory, identity: Identity) -> None:
    """Write the namespace's file as the index has it by now; in a write transaction, so by one at a time."""
    record = txn.namespace(identity.digest)
    scope, epoch = (record.scope, record.epoch) if record else (0, 0)
    directory.namespaces.write(identity.digest, NamespaceFile(identity, scope, epoch))


def _set_cap(txn: Transaction, directory: StoreDirectory, budget: Budget) -> None:
    txn.set_number("capacity_bytes", budget.capacity_bytes)
    txn.set_number("reserve_bytes", budget.reserve_bytes)
    Quarantine(directory.files, directory.quarantine_path).trim(budget.quarantine_bytes)


def _cap_if_unknown(txn: Transaction, facts: Facts) -> None:
    """Cap a store whose rebuilt index does not know the cap: until a server sets it, it grows no further."""
    if not txn.number("capacity_bytes"):
        taken_bytes = sum(segment.allocated_bytes for segment in txn.segments().values())
        txn.set_number("capacity_bytes", cap_holding(taken_bytes, len(txn.namespaces()), facts))


def _remove_orphans(txn: Transaction, directory: StoreDirectory) -> None:
    """Remove files without a record, and records without a file: a process died between the two."""
    known, numbers = txn.segments(), directory.segments.paths().keys()
    for number, segment in known.items():
        if segment.state is SegmentState.FREE and number not in numbers:
            txn.drop_segment(number)
    for number in numbers - known.keys():
        with directory.segments.claimed(number) as file:
            if file is not None:
                directory.segments.unlink(number)
