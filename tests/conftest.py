"""No test leaves anything behind: threads, tasks, open files, shared memory.

What a test's own fixtures hold is released before these checks look, and what fixtures of a wider scope
hold was there before the test. What ends on its own is waited for, up to a bound.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest

THREAD_END_WAIT_S = 5.0  # a stopped thread is gone within milliseconds, unless the machine is very busy

SHARED_MEMORY = Path("/dev/shm")

LOCKS = Path("/proc/locks")  # one line a lock; the sixth field is major:minor:inode

LASTING_FILES = (
    "/dev/null",
    "/dev/urandom",
    "/proc/",
    "/sys/",
)  # opened once by whatever is first to use them

LASTING_THREADS = ("asyncio_",)  # a loop's own executor, which ends with the loop, after these checks


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and not _may_mount():
        pytest.skip("needs root, mounts and loop devices")


@cache
def _may_mount() -> bool:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]  # seen by nobody else
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_leaves_no_task")
    before = _held()
    yield
    if _held() - before:
        _wait_for_the_end(before)
    left = _held() - before
    if left:
        pytest.fail("the test left behind: " + ", ".join(sorted(left)))


@pytest.fixture
async def _leaves_no_task() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # one round, in which cancelled tasks end
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        pytest.fail("the test left behind: " + ", ".join(sorted(map(repr, left))))


def _held() -> set[str]:
    return {*_threads(), *_open_files(), *_shared_memory()}


def _wait_for_the_end(before: set[str]) -> None:
    for name, thread in _threads().items():
        if name not in before and thread is not threading.current_thread():
            thread.join(THREAD_END_WAIT_S)
    gc.collect()


def _threads() -> dict[str, threading.Thread]:
    return {
        f"thread {thread.name} ({thread.ident})": thread
        for thread in threading.enumerate()
        if not thread.name.startswith(LASTING_THREADS)
    }


def _open_files() -> Iterator[str]:
    tracker_fd = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]  # lasts as the process
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor that listed them
        if fd != tracker_fd and not target.startswith(LASTING_FILES):
            yield f"file {target} ({fd})"


def _shared_memory() -> Iterator[str]:
    """kvtier's files in shared memory that this process maps, or that no living process has locked."""
    for file in SHARED_MEMORY.glob("kvtier*"):
        if _maps(file) or not _is_locked(file):
            yield f"shared memory {file}"


def _maps(file: Path) -> bool:
    return any(mapping.path == str(file) for mapping in psutil.Process().memory_maps())


def _is_locked(file: Path) -> bool:
    try:
        inode = str(file.stat().st_ino)
    except FileNotFoundError:
        return True  # its owner has just removed it
    return any(line.split()[-3].rpartition(":")[2] == inode for line in LOCKS.read_text().splitlines())
