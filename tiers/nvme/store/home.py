"""The index of a store in shared memory: the one that is there, or one made anew.

Who opens beside others uses theirs, and is refused where that cannot be: never two indexes serve one log. Who
is alone uses what was left there on this very boot, unless it is not to be trusted: it was found damaged, or
those who used it have died twice in a row. Then the checkpoint is copied, and what came since is read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from dataclasses import replace
from typing import NamedTuple

from ...errors import TierError, TierUnavailable
from ..index import memory
from ..index.datafile import DATA, START_BYTES
from ..index.environment import Index
from ..index.errors import IndexDamaged
from ..index.records import map_bytes_for, shared_bytes_for, system_page_bytes
from ..index.transaction import Transaction
from .checkpoint import Footer, checkpoint_footer, restore_checkpoint, write_checkpoint
from .directory import NAMESPACES_BYTE, OutOfReach, StoreDirectory
from .facts import FACTS, put_facts
from .frame import frame
from .mark import IN_USE, Mark, pid_namespace, read_mark, write_mark

logger = logging.getLogger(__name__)

UNCLEAN_MAX = 2  # ends in a row without a close, after which the index is made anew: it may be what ends them
WHOLE = "whole"  # the number that the mark has too, once the index was made to its end; no copy has it
_MADE_BITS = 62  # of a number that no other index of the store has had
_FIX = "give each its own directory, or let them share both (hostPID or shareProcessNamespace, one /dev/shm)"


class Sizes(NamedTuple):
    """How far an index may grow, and how much shared memory it takes when its store is full."""

    map_bytes: int
    shared_bytes: int

    @staticmethod
    def of(capacity_bytes: int, chunk_bytes: int) -> Sizes:
        page = system_page_bytes()
        return Sizes(
            map_bytes_for(capacity_bytes, chunk_bytes, page),
            shared_bytes_for(capacity_bytes, chunk_bytes, page),
        )


def join_index(directory: StoreDirectory) -> Index:
    """The index of those who use the store.

    Raises:
        OutOfReach: it cannot be used from here; says why, and what to do.
    """
    mark, root = read_mark(directory.root), directory.root
    if mark is None or not mark.is_of(directory.lock_id):
        raise OutOfReach(
            "nvme", f"{root} is in use, and nothing says where its index is; stop those who use it"
        )
    if mark.boot != directory.files.boot_id():
        raise OutOfReach("nvme", f"{root} is in use on another machine; a store belongs to one")
    if mark.processes != pid_namespace():
        raise OutOfReach("nvme", f"{root} is in use in another PID namespace (another container): {_FIX}")
    memory.refuse_foreign(directory.home_path)
    home = memory.look(directory.home_path)
    if home is None or home.name != mark.home:
        raise _not_there(directory)
    with contextlib.ExitStack() as undo:
        try:
            index = Index.open(home.path)
            undo.callback(index.close)
            _refuse_unfinished(directory, index, mark)
        except IndexDamaged as error:
            what = f"{root} is in use, and its index is damaged ({error}); stop those who use it"
            raise TierUnavailable("nvme", what) from error
        if not memory.is_there(home):  # what was opened may not be what was seen
            raise _not_there(directory)
        undo.pop_all()
    directory.home = home
    return index


def _not_there(directory: StoreDirectory) -> OutOfReach:
    return OutOfReach(
        "nvme",
        f"{directory.root} is in use, and its index is not in the shared memory that is seen from here, or "
        f"not all of it: it is another container's ({_FIX}), or something has cleaned "
        f"{home_place(directory)} (systemd's RemoveIPC, a cleaner of temporary files): then stop those who "
        f"use the store, and start again",
    )


def _refuse_unfinished(directory: StoreDirectory, index: Index, mark: Mark) -> None:
    with index.read() as txn:
        uuid, whole = txn.store_uuid(), txn.number(WHOLE)
    if uuid != directory.facts.store or whole != mark.made:
        raise IndexDamaged("nvme", "the index is unfinished or another store's")


def index_alone(directory: StoreDirectory, sizes: Sizes, *, anew: bool = False, tidy: bool = True) -> Index:
    """The index of a store that nobody else uses: what was left of it, or one made from checkpoint and log.

    Unless it is to `tidy` up, files and records that do not belong together stay, for a check to find.

    Raises:
        TierUnavailable: there is too little shared memory.
        OSError: the log cannot be read.
    """
    memory.refuse_limited(_start_bytes(directory), sizes.shared_bytes)
    mark = _own_mark(directory)
    if not anew and mark is not None and not mark.checkpoint:
        try:
            return _left_index(directory, mark, sizes)
        except IndexDamaged as error:
            logger.warning("%s; the index of %s is made anew", error, directory.root)
    return _index_anew(directory, sizes, tidy=tidy)


def is_index_lost(directory: StoreDirectory) -> str:
    """Why the index of a store that nobody else uses has to be made from the log alone; empty where not."""
    mark = _own_mark(directory)
    if mark is not None and _is_trusted(directory, mark):
        return ""
    if checkpoint_footer(directory.checkpoint_path, directory.facts.store) is not None:
        return ""
    return "the index is lost" if directory.segments.paths() else ""


def leave_alone(directory: StoreDirectory, index: Index) -> None:
    """Leave the store as its last user: the index as a checkpoint, and nothing in shared memory.

    Where the directory is gone from its path, nothing is written: what is there now is another store.
    """
    if index.damaged:
        note_damage(directory)
        return
    home = directory.home
    assert home is not None, "an open index has one"
    with index.read() as txn:
        mark = _own_mark(directory) or _mark(directory, home, txn.number(WHOLE))
    checkpoint = _last_checkpoint(directory, index) if directory.is_there() else ""
    index.close()
    if directory.is_there():
        mark = replace(mark, closed=True, checkpoint=checkpoint, distrusted=index.damaged)
        write_mark(directory.files, directory.root, mark)
        if checkpoint:
            memory.remove(home.path)
    elif directory.is_removed():
        memory.remove(home.path)


def _last_checkpoint(directory: StoreDirectory, index: Index) -> str:
    """The name of the checkpoint that has all that the index has, "" where none could be made."""
    if _is_unchanged(directory, index):
        assert directory.restored is not None, "it is unchanged since"
        return directory.restored[0]
    try:
        footer = write_checkpoint(directory, index)
    except (OSError, TierError) as error:
        logger.warning("nvme: no checkpoint of %s could be made: %s", directory.root, error)
        return ""
    return footer.name if footer is not None else ""


def note_damage(directory: StoreDirectory) -> None:
    """Say in the mark that whoever opens the store next makes the index anew."""
    mark = _own_mark(directory)
    if mark is not None and not mark.distrusted and directory.is_there():
        write_mark(directory.files, directory.root, replace(mark, distrusted=True))


def write_again(directory: StoreDirectory, index: Index) -> None:
    """Write again what a cleaner of old files has taken: they are the oldest of all in a store that is used.

    Without the facts nobody can open the store later, without the mark nobody can join those who use it.

    Raises:
        OSError, TierError: the next call tries again.
    """
    files, root, home = directory.files, directory.root, directory.home
    if home is None or not directory.is_there():
        return
    if all((root / name).exists() for name in (FACTS, IN_USE)):
        return
    with directory.claimed(NAMESPACES_BYTE):
        if not (root / FACTS).exists():
            put_facts(files, root, directory.facts)
        if not (root / IN_USE).exists():
            with index.read() as txn:
                mark = _mark(directory, home, txn.number(WHOLE))
            write_mark(files, root, replace(mark, distrusted=index.damaged))
    logger.warning("nvme: something removes files from %s while it is in use; they were written again", root)


def home_place(directory: StoreDirectory) -> str:
    return str(directory.home_path.parent)


def _own_mark(directory: StoreDirectory) -> Mark | None:
    """The mark, where it is of this store and this boot."""
    mark = read_mark(directory.root)
    if mark is None or mark.boot != directory.files.boot_id():
        return None
    return mark if mark.is_of(directory.lock_id) else None


def _is_trusted(directory: StoreDirectory, mark: Mark) -> bool:
    home = memory.look(directory.home_path)
    there = home is not None and home.name == mark.home
    return there and not mark.distrusted and (mark.closed or mark.unclean + 1 < UNCLEAN_MAX)


def _left_index(directory: StoreDirectory, mark: Mark, sizes: Sizes) -> Index:
    if not _is_trusted(directory, mark):
        raise IndexDamaged(
            "nvme", "the index was cleaned away, found damaged, or twice in use at a sudden end"
        )
    home = memory.look(directory.home_path)
    assert home is not None, "it is trusted"
    home = memory.renewed(home)
    unclean = mark.unclean + (0 if mark.closed else 1)
    with contextlib.ExitStack() as undo:
        # An open that is refused ends nothing: it does not count.
        undo.callback(write_mark, directory.files, directory.root, replace(mark, home=home.name))
        write_mark(directory.files, directory.root, _mark(directory, home, mark.made, unclean))
        index = Index.open(home.path, sizes.map_bytes, alone=True)
        undo.callback(index.close)
        _refuse_unfinished(directory, index, mark)
        undo.pop_all()
    directory.home = home
    return index


def _index_anew(directory: StoreDirectory, sizes: Sizes, *, tidy: bool) -> Index:
    before = read_mark(directory.root)
    if before is not None and before.distrusted:
        directory.files.unlink(directory.checkpoint_path)  # it may have been made of what was damaged
    home = memory.make(directory.home_path, sizes.shared_bytes, directory.root)
    mark = _mark(directory, home, secrets.randbits(_MADE_BITS) + 1)
    with contextlib.ExitStack() as undo:
        undo.callback(memory.remove, home.path)
        undo.callback(write_mark, directory.files, directory.root, before)
        write_mark(directory.files, directory.root, mark)
        footer = restore_checkpoint(directory, home.path / DATA)
        directory.files.reached("index restored")
        name = footer.name if footer is not None else ""
        is_current = footer is not None and is_last_of(before, directory, footer)
        try:
            index = _framed(directory, home, sizes, mark, name, is_current=is_current, tidy=tidy)
        except IndexDamaged as error:  # its checksum was right: it was made so
            if not name:
                raise
            logger.warning("%s; the checkpoint of %s is of no use", error, directory.root)
            directory.files.unlink(directory.checkpoint_path)
            os.truncate(home.path / DATA, 0)
            index = _framed(directory, home, sizes, mark, "", is_current=False, tidy=tidy)
        directory.home = home
        undo.pop_all()
    return index


def _framed(
    directory: StoreDirectory,
    home: memory.Home,
    sizes: Sizes,
    mark: Mark,
    checkpoint: str,
    *,
    is_current: bool,
    tidy: bool,
) -> Index:
    """Open what a checkpoint has left there, or nothing, and bring it up to what the drive says."""
    index = Index.open(home.path, sizes.map_bytes, alone=True)
    with contextlib.ExitStack() as undo:
        undo.callback(index.close)
        restored = _last_commit(index)
        frame(directory, index, is_current=is_current, tidy=tidy)
        is_unchanged = _last_commit(index) == restored
        directory.files.reached("index framed")
        index.write(lambda txn: _finish(txn, directory.facts.store, mark.made))
        if checkpoint and is_unchanged:
            directory.restored = (checkpoint, _last_commit(index))
        undo.pop_all()
    return index


def is_last_of(mark: Mark | None, directory: StoreDirectory, footer: Footer) -> bool:
    """Whether nobody has used the store since the checkpoint.

    A copy may have been made while servers used the store: its mark and checkpoint may be older than its log.
    """
    return mark is not None and mark.is_of(directory.lock_id) and mark.checkpoint == footer.name


def _finish(txn: Transaction, store: bytes, made: int) -> None:
    if txn.store_uuid() != store:
        txn.set_store_uuid(store)
    txn.set_number(WHOLE, made)


def _mark(directory: StoreDirectory, home: memory.Home, made: int, unclean: int = 0) -> Mark:
    lock_device, lock_inode = directory.lock_id
    return Mark(
        directory.files.boot_id(),
        pid_namespace(),
        lock_device,
        lock_inode,
        home.name,
        made,
        unclean,
    )


def _is_unchanged(directory: StoreDirectory, index: Index) -> bool:
    """Whether the checkpoint that the index was made from still says all that the index says."""
    footer = checkpoint_footer(directory.checkpoint_path, directory.facts.store)
    if footer is None or directory.restored is None:
        return False
    return directory.restored == (footer.name, _last_commit(index))


def _start_bytes(directory: StoreDirectory) -> int:
    """What the index takes before anything is stored."""
    footer = checkpoint_footer(directory.checkpoint_path, directory.facts.store)
    return START_BYTES + (footer.index_bytes if footer is not None else 0)


def _last_commit(index: Index) -> int:
    with index.read() as txn:
        return txn.last_commit()
