"""Removes indexes from shared memory whose stores are gone, and that nobody uses: killed servers leave them.

Which store an index is of, its directory says: the path of the store in a file, device and inode of the
store's lock file in the name. Whoever has an index open holds a lock on it (`writer.py`), so one that is in
use is left alone, whatever has become of its store. What is removed wrongly, because its drive is not mounted
at the moment, costs a start from the checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from ..io.files import Files
from .memory import OWNER, remove
from .writer import USERS_BYTE, WRITER

logger = logging.getLogger(__name__)

THREAD_NAME = "kvtier-leftovers"


def remove_in_background(place: Path, lock_name: str) -> None:
    """Remove the leftovers at a place, in a thread of its own: to ask for a store is to ask its drive.

    `lock_name` is that of a store's lock file.
    """
    homes = _homes(place)
    if homes:
        with suppress(RuntimeError):  # no thread is to be had: the next open tries again
            threading.Thread(
                target=remove_leftovers, args=(homes, lock_name), name=THREAD_NAME, daemon=True
            ).start()


def remove_leftovers(homes: list[Path], lock_name: str) -> None:
    """Remove those whose stores are gone and that nobody has open."""
    for home in homes:
        with suppress(OSError, ValueError):  # somebody else removes it, too; or it is none of ours
            if _is_store_gone(home, lock_name):
                _remove_unused(home)


def _homes(place: Path) -> list[Path]:
    with suppress(OSError):
        return list(place.glob(f"kvtier-index-{os.geteuid()}-*"))
    return []


def _is_store_gone(home: Path, lock_name: str) -> bool:
    """Whether the path of its store names none any more, or another one; False where nobody can say."""
    text = (home / OWNER).read_bytes()
    if not text.endswith(b"\n"):
        return False  # it is just being made
    device, inode = (int(number, 16) for number in home.name.split("-")[-2:])
    try:
        state = Path(os.fsdecode(text[:-1]), lock_name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return (state.st_dev, state.st_ino) != (device, inode)


def _remove_unused(home: Path) -> None:
    files, fd = Files(), os.open(home / WRITER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if files.try_lock(fd, USERS_BYTE, exclusive=True):
            remove(home)
            logger.info("nvme: removed %s, the index of a store that is gone", home)
    finally:
        files.close(fd)
