"""Threads that cannot be started, calls that cannot be submitted, and waits that are cancelled."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from nvme_rig import filled, keys_of, opened, right, stored

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.lanes import Lanes
from kvtier.tiers.nvme.io.threads import Threads, through
from kvtier.tiers.testing import aligned_buffers

CHUNK_BYTES = 64 * 1024
EXIT_S = 60.0  # of a process with a call that takes ten times as long


@pytest.mark.parametrize("allowed", [0, 1, 7, 17])
async def test_a_limit_of_threads_fails_the_open_by_name_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    real, started = threading.Thread.start, list[threading.Thread]()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("kvtier"):
            if len(started) == allowed:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TierUnavailable, match=r"pids\.max.*RLIMIT_NPROC"):
        await opened(tmp_path / "store")
    assert not any(thread.is_alive() for thread in started)


async def test_no_thread_is_started_after_the_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = await opened(tmp_path / "store")

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        await stored(tier, keys_of(0, 64))
        assert await right(tier, keys_of(0, 64)) == keys_of(0, 64)
        await tier.flush()
    await tier.close()


class HeldReads(Files):
    """Reads and writes that wait until they may go on, on lanes of loads and stores."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.began = threading.Semaphore(0)

    def _hold(self) -> None:
        if threading.current_thread().name.startswith(("kvtier-load", "kvtier-store")):
            self.began.release()
            self.may_go_on.wait()

    def preadv(self, fd: int, buffers: Any, offset: int) -> int:
        self._hold()
        return super().preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Any, offset: int) -> int:
        self._hold()
        return super().pwritev(fd, buffers, offset)


def refuse_after(pool: Threads, count: int, files: HeldReads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many calls be submitted and begin, and no more."""
    real, left = pool.submit, [count]

    def submit(*args: Any, **kwargs: Any) -> Any:
        if not left[0]:
            for _ in range(count):
                files.began.acquire()
            raise RuntimeError("no room in the queue")
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(pool, "submit", submit)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("call", ["load", "store"])
async def test_a_failing_submit_returns_only_when_no_thread_uses_the_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, count: int
) -> None:
    files = HeldReads()
    files.may_go_on.set()
    tier = await opened(tmp_path / "store", chunk_bytes=CHUNK_BYTES, files=files)
    keys = keys_of(0, 64)
    await stored(tier, keys, CHUNK_BYTES)
    files.may_go_on.clear()
    files.began = threading.Semaphore(0)
    buffers: list[Buffer] = aligned_buffers(64, CHUNK_BYTES)
    with monkeypatch.context() as patched:
        if call == "load":
            refuse_after(tier._lanes._load_pool, count, files, patched)
            task = asyncio.ensure_future(tier.load(keys, buffers))
        else:
            refuse_after(tier._lanes._store_pool, count, files, patched)
            task = asyncio.ensure_future(tier.store(keys_of(100, 64), filled(keys_of(100, 64), CHUNK_BYTES)))
        for _ in range(100):
            await asyncio.sleep(0)
        early = task.done()
        files.may_go_on.set()
        with pytest.raises(RuntimeError, match="no room in the queue"):
            await task
    assert not early, "a thread still used the buffers"
    before = [bytes(buffer) for buffer in buffers]
    assert len(await right_of(tier, keys)) == 64
    assert [bytes(buffer) for buffer in buffers] == before
    await tier.close()


async def right_of(tier: Any, keys: list[bytes]) -> list[bytes]:
    return await right(tier, keys, CHUNK_BYTES)


async def test_a_cancelled_task_of_aiofiles_does_not_end_the_wait_for_its_thread() -> None:
    """A loop that closes cancels every task, the inner ones too."""
    pool, began, release = Threads(1, "kvtier-test"), threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        release.wait()

    task = asyncio.ensure_future(through(pool, call))
    await asyncio.to_thread(began.wait)
    for _ in range(5):
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    pool.shutdown()


async def test_a_call_that_raises_leaves_its_thread_to_the_next() -> None:
    lanes = Lanes()

    def bad() -> None:
        raise ValueError("bad")

    for _ in range(10):
        with pytest.raises(ValueError, match="bad"):
            await lanes.index(bad)
    assert await lanes.index(lambda: 7) == 7
    lanes.close()


def test_the_interpreter_ends_though_a_thread_hangs() -> None:
    script = """
        import asyncio, time
        from kvtier.tiers.nvme.io.lanes import Lanes
        async def main():
            lanes = Lanes()
            began = asyncio.Event()
            loop = asyncio.get_running_loop()
            def hang():
                loop.call_soon_threadsafe(began.set)
                time.sleep(600)
            lanes._load_pool.submit(hang)
            await began.wait()
            print("main ends", flush=True)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=EXIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, "main ends\n"), done.stderr
