"""Namespaces come into force, leave it, and get new epochs: the file first, then the index.

A namespace's file names its scope before any chunk is stored under it, so that a log without an index is read
as it was meant. Files are written and removed under a claim, never inside a transaction: it decides which
scope comes next, the file is written, and a second one confirms. A process that dies in between leaves a file
whose scope is ahead of the index; whoever opens the namespace next confirms it.
"""

from __future__ import annotations

import logging

from ..index.environment import Index
from ..index.records import Namespace
from ..index.transaction import Transaction
from .directory import NAMESPACES_BYTE, StoreDirectory
from .namespaces import Identity, NamespaceFile

logger = logging.getLogger(__name__)


def open_namespace(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Bring the identity's namespace into force, if it is not.

    Raises:
        IdentityMismatch: the namespace on the drive names other fields.
    """
    file = directory.namespaces.compared(identity)
    with index.read() as txn:
        record = txn.namespace(identity.digest)
    if file is not None and record is not None and record.scope == file.scope:
        return
    if file is None:
        _log_relatives(directory, identity)
    with directory.claimed(NAMESPACES_BYTE):
        file = directory.namespaces.compared(identity)  # another process may have been quicker
        if file is None or not file.scope:
            scope, epoch = index.write(lambda txn: _scope_in_force(txn, identity.digest))
            file = NamespaceFile(identity, scope, epoch)
            directory.namespaces.write(identity.digest, file)
            directory.files.reached("namespace written")
        index.write(lambda txn: _confirm(txn, identity.digest, file))


def raise_epoch(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Put every chunk of the namespace out of sight at once, in every process."""
    with directory.claimed(NAMESPACES_BYTE):
        scope, epoch = index.write(lambda txn: _next_scope(txn, identity.digest))
        file = NamespaceFile(identity, scope, epoch)
        directory.namespaces.write(identity.digest, file)
        index.write(lambda txn: _confirm(txn, identity.digest, file))
    directory.files.reached("epoch raised")


def drop_namespace(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Drop the namespace: its chunks are misses at once, and leave with their segments."""
    index.write(lambda txn: txn.drop_namespace(identity.digest))
    if directory.is_there():
        directory.namespaces.remove(identity.digest)


def drop_unneeded(directory: StoreDirectory, index: Index, identity: Identity) -> None:
    """Drop all other namespaces that nothing is lost with. Call it while nobody else has the store open."""
    files = directory.namespaces.read()
    with index.read() as txn:
        records = txn.namespaces()
        digests = (records.keys() | files.keys()) - {identity.digest}
        whole = txn.newest_unread() is None  # else it is not known yet what lies in them
        unneeded = [
            digest
            for digest in digests
            if _is_unneeded(txn, records.get(digest), files.get(digest), is_whole=whole)
        ]
    for digest in unneeded:
        if digest in records:
            index.write(lambda txn, digest=digest: txn.drop_namespace(digest))  # type: ignore[misc]
        directory.namespaces.remove(digest)


def _log_relatives(directory: StoreDirectory, identity: Identity) -> None:
    for other in directory.namespaces.read().values():
        if other.identity.label == identity.label:
            differences = "; ".join(identity.differences(other.identity))
            logger.info(
                "nvme: %s starts empty: chunks of the same name differ: %s", identity.label, differences
            )


def _is_unneeded(
    txn: Transaction, record: Namespace | None, file: NamespaceFile | None, *, is_whole: bool
) -> bool:
    """Whether it was one process' own, which has ended, or has no chunks and never had an older epoch.

    Chunks of an older epoch may lie in segments also where the index knows of none, and only the epoch in
    force keeps them out when the log is read again.
    """
    if file is not None and file.identity.is_of_one_process:
        return True
    if (record is not None and record.epoch) or (file is not None and file.epoch) or not is_whole:
        return False
    return record is None or next(txn.extents(record.scope), None) is None


def _scope_in_force(txn: Transaction, digest: bytes) -> tuple[int, int]:
    record = txn.namespace(digest)
    return (record.scope, record.epoch) if record else (txn.next_number("scope"), 0)


def _next_scope(txn: Transaction, digest: bytes) -> tuple[int, int]:
    record = txn.namespace(digest)
    return txn.next_number("scope"), record.epoch + 1 if record else 1


def _confirm(txn: Transaction, digest: bytes, file: NamespaceFile) -> None:
    record = txn.namespace(digest)
    if record is None or record.scope < file.scope:
        txn.put_namespace(digest, Namespace(file.scope, file.epoch, 0, 0, 0, 0))
        txn.set_number("scope", max(txn.number("scope"), file.scope))
