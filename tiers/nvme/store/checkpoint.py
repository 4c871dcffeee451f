"""The checkpoint: a compact copy of the index on the drive, as it was at one moment.

    index    LMDB's own copy: extents, namespaces, segments with their generations, removals, what is unread
    footer   one block: format, store, size and checksum of the copy, when it was made, how many chunks it has

It is written under a new name, synced and renamed, so that there is always a whole one or none. Every chunk
that it names is durable: the copy is made first, then all that others have open is synced, then it counts.

The copy is made in memory and written from there. While it is made, no page that it still needs is used
again, and the index grows with every change: that must not last for as long as a drive takes, or hangs.

The position in the log is in the copy itself: a segment whose header names the generation that the copy has,
and that was not open then, holds nothing that the copy lacks. `frame.py` reads what came since.

Its room belongs to the cap. A copy that is larger than its share is not kept: the log is the truth.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from ..format.checksum import block_checksum
from ..index.environment import Index
from ..index.errors import IndexFull
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES
from ..io.clock import now_s
from ..io.files import write_whole
from ..log.room import Room
from ..log.segments import sync_open
from ..wear.record import add_written
from .directory import CHECKPOINT_BYTE, StoreDirectory
from .frame import PASSING

logger = logging.getLogger(__name__)

STEP_BYTES = 1024 * 1024  # copied at a time
MADE_S, MADE_OPENED = "checkpoint_s", "checkpoint_opened"  # numbers in the index: when the last one was made

_FOOTER = struct.Struct("<8s16sQIQQ")
_MAGIC = b"KVTCKP\x00\x01"
_CHECKSUM = struct.Struct("<I")


class Footer(NamedTuple):
    """What a checkpoint says of itself."""

    store: bytes
    index_bytes: int
    checksum: int
    made_s: int
    chunks: int

    @property
    def name(self) -> str:
        """What tells it from every other one of its store."""
        return f"{self.made_s:x}-{self.index_bytes:x}-{self.checksum:08x}"

    def encode(self) -> bytes:
        head = _FOOTER.pack(_MAGIC, *self)
        return (head + _CHECKSUM.pack(block_checksum(head))).ljust(BLOCK_BYTES, b"\0")

    @staticmethod
    def decode(data: bytes) -> Footer | None:
        """The footer in `data`, None where there is none."""
        head = data[: _FOOTER.size]
        if len(data) != BLOCK_BYTES or not head.startswith(_MAGIC):
            return None
        if _CHECKSUM.unpack_from(data, _FOOTER.size)[0] != block_checksum(head):
            return None
        return Footer(*_FOOTER.unpack(head)[1:])


def write_checkpoint(directory: StoreDirectory, index: Index) -> Footer | None:
    """Make a checkpoint; None where another process is about to, it has no room under the cap, or the
    directory was removed: its path may be another store's by now.

    Raises:
        OSError, TierError: it could not be made; the one before, if any, is there as it was.
    """
    if not directory.is_there() or not directory.try_claim(CHECKPOINT_BYTE):
        return None
    try:
        return _written(directory, index)
    finally:
        directory.unclaim(CHECKPOINT_BYTE)


def restore_checkpoint(directory: StoreDirectory, target: Path) -> Footer | None:
    """Copy the checkpoint's index to `target`; None, and an empty file there, where there is no good one.

    Raises:
        IndexFull: there is no room for the copy.
        OSError: the system has no descriptors or memory left; the checkpoint may be good.
    """
    try:
        with directory.checkpoint_path.open("rb") as file, target.open("wb") as copy:
            footer = _footer(file.fileno(), directory.facts.store)
            good = footer is not None and footer.checksum == _poured(
                file.fileno(), copy.fileno(), footer.index_bytes, directory.step
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in PASSING:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the copy, since of the other it is only read
            raise IndexFull("nvme", f"no room for {target}") from error
        logger.warning("nvme: the checkpoint of %s cannot be read: %s", directory.root, error)
        good = False
    else:
        if good:
            return footer
        logger.warning("nvme: the checkpoint of %s is damaged or another store's", directory.root)
    os.truncate(target, 0)
    return None


def checkpoint_footer(root_path: Path, store: bytes) -> Footer | None:
    """What the checkpoint at a path says of itself, None where there is no good one of this store."""
    with suppress(OSError), root_path.open("rb") as file:
        return _footer(file.fileno(), store)
    return None


def _written(directory: StoreDirectory, index: Index) -> Footer | None:
    files, path = directory.files, directory.checkpoint_path
    directory.refuse_gone()
    index.write(_note)
    with index.read() as txn:
        share_bytes = Room(directory.segments, index).budget(txn).checkpoint_bytes
        chunks = txn.extents_count()
    if index.file_bytes() > 2 * share_bytes and not _fits(index, share_bytes):
        logger.warning("nvme: a checkpoint of the index would not fit its share of the cap; there is none")
        files.unlink(path)
        return None
    draft = path.with_name(path.name + ".new")
    with _copy_of(index) as copy, _draft(directory, draft) as fd:
        size_bytes = os.fstat(copy).st_size
        if size_bytes + BLOCK_BYTES > share_bytes:
            logger.warning("nvme: a checkpoint of %d bytes exceeds its share of the cap", size_bytes)
            return None
        checksum = _poured(copy, fd, size_bytes, directory.step)
        assert checksum is not None, "nobody else has the copy"
        sync_open(directory.segments, index)  # what the copy names
        footer = Footer(directory.facts.store, size_bytes, checksum, now_s(), chunks)
        write_whole(fd, footer.encode(), size_bytes)
        files.sync_data(fd)
        files.reached("checkpoint written")
        directory.refuse_gone()
        draft.rename(path)
    files.sync_directory(path.parent)
    files.reached("checkpoint in place")
    return footer


def _note(txn: Transaction) -> None:
    txn.set_number(MADE_S, now_s())
    txn.set_number(MADE_OPENED, txn.number("opened"))
    add_written(txn, txn.tree_bytes())  # of the copy, and nearly all of it


def _fits(index: Index, share_bytes: int) -> bool:
    with index.read() as txn:
        return txn.copy_bytes() <= share_bytes


@contextmanager
def _copy_of(index: Index) -> Iterator[int]:
    """A compact copy of the index, in memory."""
    fd = os.memfd_create("kvtier-checkpoint")
    try:
        index.copy_to(fd)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _draft(directory: StoreDirectory, draft: Path) -> Iterator[int]:
    """A new file; gone at the end unless it was renamed."""
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        with suppress(OSError):
            directory.files.unlink(draft)


def _footer(fd: int, store: bytes) -> Footer | None:
    size_bytes = os.fstat(fd).st_size
    if size_bytes < BLOCK_BYTES:
        return None
    footer = Footer.decode(os.pread(fd, BLOCK_BYTES, size_bytes - BLOCK_BYTES))
    right = footer is not None and footer.store == store and footer.index_bytes == size_bytes - BLOCK_BYTES
    return footer if right else None


def _poured(source: int, target: int, size_bytes: int, step: Callable[[], None]) -> int | None:
    """Copy one file to another; the checksum of what was copied, None where the source is shorter."""
    checksum, offset = 0, 0
    while offset < size_bytes:
        data = os.pread(source, min(STEP_BYTES, size_bytes - offset), offset)
        if not data:
            return None
        checksum = crc32c(data, checksum)
        write_whole(target, data, offset)
        offset += len(data)
        if offset % (64 * STEP_BYTES) == 0:
            step()
    return checksum
