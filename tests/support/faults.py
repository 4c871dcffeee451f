"""Rows of docs/faults.md, each beside the test that shows it; and children that a fault may kill."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from kvtier.tiers.base import Buffer
from kvtier.tiers.nvme.io.files import Files

CHILD_WAIT_S = 300.0  # a child that hangs is a failure of its own; the slowest takes 12 s
POLL_S = 0.02


def fault(what: str, *, sees: str, loses: str, heals: str) -> pytest.MarkDecorator:
    """One row: the fault, what the caller sees, what is lost, how it heals. Plain text: a tool reads it."""
    return pytest.mark.fault(what, sees=sees, loses=loses, heals=heals)


def in_child(work: Callable[[], Awaitable[None]]) -> int:
    """Run it in a child of this process; returns its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            asyncio.run(_awaited(work))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline_s = time.monotonic() + CHILD_WAIT_S
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(child, 9)
        time.sleep(POLL_S)


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


class FailingFiles(Files):
    """The real files, until one kind of call fails.

    Attributes:
        call: the method that fails; "" while all work.
        code: the errno with which it does.
    """

    def __init__(self) -> None:
        self.call, self.code = "", errno.EIO

    def _refuse(self, call: str) -> None:
        if call == self.call:
            raise OSError(self.code, os.strerror(self.code))

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        self._refuse("open_data")
        return super().open_data(path, create=create, write=write)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._refuse("allocate")
        super().allocate(fd, size_bytes)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._refuse("pwritev")
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._refuse("preadv")
        return super().preadv(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        self._refuse("sync_data")
        super().sync_data(fd)


class HangingFiles(Files):
    """The real files; calls of one kind wait while the gate is closed."""

    def __init__(self) -> None:
        self.call, self.gate, self.waits = "", threading.Event(), threading.Event()
        self.gate.set()

    def _wait(self, call: str) -> None:
        if call == self.call and not self.gate.is_set():
            self.waits.set()
            self.gate.wait()

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._wait("pwritev")
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._wait("preadv")
        return super().preadv(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        self._wait("sync_data")
        super().sync_data(fd)
