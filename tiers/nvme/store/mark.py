"""The mark of a store: who used it last, on which boot, with which index in shared memory, to which end.

It is one sector, written in its place, so that it is written as a whole or not at all and a store on a full
drive can be opened. What it says of an index is bound to its store by the lock file: in a copy of the store
it says nothing. A close names the checkpoint that has all. Where the mark is lost or damaged nothing is
known: then the checkpoint is taken to be old, and the log is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..format.checksum import document_checksum
from ..io.files import Files

IN_USE = "in-use"
CHECKSUM = "checksum"
MARK_BYTES = 512  # one sector


@dataclass(frozen=True, slots=True)
class Mark:
    """What the last process that had the store alone has left.

    Attributes:
        boot: of the kernel on which that was.
        processes: its PID namespace.
        lock_device, lock_inode: the store's lock file.
        home: the directory of the index in shared memory, and its files (`memory.Home.name`).
        made: a number that only this index has, once it is whole.
        unclean: how many times in a row the store was not closed well.
        closed: closed well. Without a checkpoint, for want of room, the index stays in shared memory.
        checkpoint: the name of the checkpoint that has all, "" where none has.
        distrusted: the index was found damaged.
    """

    boot: str
    processes: int
    lock_device: int
    lock_inode: int
    home: str
    made: int
    unclean: int = 0
    closed: bool = False
    checkpoint: str = ""
    distrusted: bool = False

    def is_of(self, lock_id: tuple[int, int]) -> bool:
        """Whether it was written for the store with this lock file, and not for one that was copied."""
        return (self.lock_device, self.lock_inode) == lock_id

    def encode(self) -> bytes:
        document = asdict(self)
        data = json.dumps({**document, CHECKSUM: document_checksum(document)}).encode().ljust(MARK_BYTES)
        assert len(data) == MARK_BYTES, "a mark is one sector"
        return data

    @staticmethod
    def decode(data: bytes) -> Mark | None:
        """The mark in `data`, None where there is no whole one."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        checksum = document.pop(CHECKSUM, None)
        if not _is_whole(document) or checksum != document_checksum(document):
            return None
        return Mark(**document)


def read_mark(root: Path) -> Mark | None:
    """The store's mark, None where it is lost or damaged."""
    try:
        with (root / IN_USE).open("rb") as file:
            return Mark.decode(file.read(MARK_BYTES))
    except FileNotFoundError:
        return None


def write_mark(files: Files, root: Path, mark: Mark | None) -> None:
    """Write the mark, durably; None takes it away."""
    path = root / IN_USE
    if mark is None:
        files.unlink(path)
    elif path.exists():
        files.overwrite_small(path, mark.encode())
    else:
        files.write_small(path, mark.encode())


def pid_namespace() -> int:
    """The PID namespace of this process: within one, no two processes have the same pid."""
    return os.stat("/proc/self/ns/pid").st_ino


def _is_whole(document: Mapping[str, object]) -> bool:
    types = {"str": str, "int": int, "bool": bool}
    wanted = {field.name: types[str(field.type)] for field in fields(Mark)}
    return document.keys() == wanted.keys() and all(
        type(document[name]) is kind for name, kind in wanted.items()
    )
