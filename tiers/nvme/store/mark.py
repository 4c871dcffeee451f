"""The mark of a store that is in use: on which boot, by which processes, with which index in shared memory.

It is one sector, written in its place, so that it is written as a whole or not at all and a store on a full
drive can be opened. What it says is bound to its store by the lock file: in a copy of the store it says
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..io.files import Files

IN_USE = "in-use"
MARK_BYTES = 512  # one sector


@dataclass(frozen=True, slots=True)
class Mark:
    """What the last process that had the store alone has left.

    Attributes:
        boot: of the kernel on which that was.
        processes: its PID namespace.
        lock_device, lock_inode: the store's lock file.
        home_device, home_inode: the directory of the index in shared memory.
        unclean: how many times in a row the store was not closed well.
        closed: closed well; the index stays in shared memory for want of room for a checkpoint.
        distrusted: the index was found damaged.
    """

    boot: str
    processes: int
    lock_device: int
    lock_inode: int
    home_device: int
    home_inode: int
    unclean: int = 0
    closed: bool = False
    distrusted: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(MARK_BYTES)

    @staticmethod
    def decode(data: bytes) -> Mark | None:
        """The mark in `data`, None where there is none."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict) or not _is_whole(document):
            return None
        return Mark(**document)


def read_mark(root: Path) -> Mark | None:
    """The store's mark, None where it was closed well or the mark cannot be understood."""
    try:
        with (root / IN_USE).open("rb") as file:
            return Mark.decode(file.read(MARK_BYTES))
    except FileNotFoundError:
        return None


def write_mark(files: Files, root: Path, mark: Mark | None) -> None:
    """Write the mark, durably; None says that nobody uses the store."""
    path, data = root / IN_USE, mark.encode() if mark is not None else b" " * MARK_BYTES
    if path.exists():
        files.overwrite_small(path, data)
    else:
        files.write_small(path, data)


def pid_namespace() -> int:
    """The PID namespace of this process: within one, no two processes have the same pid."""
    return os.stat("/proc/self/ns/pid").st_ino


def _is_whole(document: Mapping[str, object]) -> bool:
    types = {"str": str, "int": int, "bool": bool}
    wanted = {field.name: types[str(field.type)] for field in fields(Mark)}
    return document.keys() == wanted.keys() and all(
        type(document[name]) is kind for name, kind in wanted.items()
    )
