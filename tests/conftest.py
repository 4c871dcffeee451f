"""No test leaves anything behind: threads, tasks, open files, shared memory.

What a test's own fixtures hold is released before these checks look, and what fixtures of a wider scope
hold was there before the test. What ends on its own is waited for, up to a bound.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest

THREAD_END_WAIT_S = 5.0  # a stopped thread is gone within milliseconds, unless the machine is very busy

SHARED_MEMORY = Path("/dev/shm")

OURS: list[str] = []  # the beginning of all paths of stores of this session; others may run beside it

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


@pytest.fixture(autouse=True)
def _cleans_up_after_the_killed(_leaves_nothing_behind: None) -> Iterator[None]:
    """Indexes of stores whose processes a test has killed; what somebody still uses is left to be found."""
    yield
    for home in _indexes():
        if not any(_maps(file) for file in home.iterdir()):
            shutil.rmtree(home)


@pytest.fixture(scope="session", autouse=True)
def _no_notice_boards() -> Iterator[None]:
    """Only tests of notice boards have engines write them: a test that kills an engine leaves its board.

    For the whole session: a server of a wider scope than a test would write its board in the middle of one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVTIER_LIVE", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def _where_our_stores_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    OURS.append(f"{tmp_path_factory.getbasetemp()}/")


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
    end_s = time.monotonic() + THREAD_END_WAIT_S  # all together: a tier has many
    for name, thread in _threads().items():
        if name not in before and thread is not threading.current_thread():
            thread.join(max(0.0, end_s - time.monotonic()))
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
    for home in _indexes():
        yield f"shared memory {home}"
    for file in SHARED_MEMORY.glob("kvtier*"):
        if file.name.startswith("kvtier-index-"):
            continue
        if _maps(file) or not _is_locked(file):
            yield f"shared memory {file}"


def _indexes() -> list[Path]:
    """The directories of indexes of this session's stores."""
    return [home for home in SHARED_MEMORY.glob("kvtier-index-*") if _is_ours(home)]


def _is_ours(home: Path) -> bool:
    try:
        return (home / "store").read_text().startswith(tuple(OURS))
    except OSError:
        return False  # just made, or just removed, by another session


def _maps(file: Path) -> bool:
    return any(mapping.path == str(file) for mapping in psutil.Process().memory_maps())


def _is_locked(file: Path) -> bool:
    try:
        inode = str(file.stat().st_ino)
    except FileNotFoundError:
        return True  # its owner has just removed it
    return any(line.split()[-3].rpartition(":")[2] == inode for line in LOCKS.read_text().splitlines())
