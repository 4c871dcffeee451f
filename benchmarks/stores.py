"""The disk stores that are compared, behind one face: batches of chunks in, batches of chunks out.

All of them move the same bytes from and to the same memory.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from kvtier.engine.loop import LoopThread
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier

MIB = 1 << 20
POLL_S = 0.0002  # between two looks at a peer's finished jobs; about its own wake-up cost
FIO_RUNTIME_MAX_S = 60

# Of an inode, as `chattr +T` sets them.
_FLAGS = struct.Struct("l")
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOP_OF_TREES = 0x00020000

RANDOM_BYTES = 16 * MIB  # repeated; no drive finds that far apart repetitions


class Pages:
    """Page-aligned host memory, as an arena is; the same for every store that is measured."""

    def __init__(self, size_bytes: int) -> None:
        self._map = mmap.mmap(-1, size_bytes)
        random = np.random.default_rng(0).integers(0, 256, RANDOM_BYTES, np.uint8)
        flat = np.frombuffer(self._map, np.uint8)
        for start in range(0, size_bytes, RANDOM_BYTES):  # pages touched, not zero
            part = flat[start : start + RANDOM_BYTES]
            part[:] = random[: len(part)]
        self.view = memoryview(self._map)


class Memory:
    """Rows of it, one for each chunk, as slots are. The first bytes of each tell them apart."""

    def __init__(self, pages: Pages, rows: int, row_bytes: int) -> None:
        assert rows * row_bytes <= len(pages.view), "a case fits into the memory"
        self.row_bytes = row_bytes
        self._rows_count = rows
        self._view = pages.view[: rows * row_bytes]
        self._marks()[:] = np.arange(1, rows + 1)

    def row(self, index: int) -> memoryview:
        return self._view[index * self.row_bytes : (index + 1) * self.row_bytes]

    def table(self) -> memoryview:
        """All rows as a two-dimensional view."""
        return self._view.cast("B", (self._rows_count, self.row_bytes))

    def forget(self) -> None:
        self._marks()[:] = 0

    def check(self) -> None:
        """Whether every row has been filled with its own chunk since it was forgotten."""
        assert (self._marks() == np.arange(1, self._rows_count + 1)).all(), "each row has its own chunk again"

    def _marks(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.frombuffer(self._view, np.int64).reshape(self._rows_count, -1)[:, 0]


class Request(Protocol):
    """One batch under way."""

    def result(self) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: a chunk of it failed.
        """
        ...


class Store(Protocol):
    name: str

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request: ...

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request: ...

    def close(self) -> None: ...


class KvtierRequest:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self) -> None:
        failed = self._future.result().failed
        if failed:
            raise RuntimeError(f"kvtier: {len(failed)} chunks failed: {set(failed.values())}")


class Kvtier:
    """Our NVMe tier, checksums on, on an event loop in a thread as in a server."""

    name = "kvtier"

    def __init__(self, path: Path, memory: Memory, capacity_bytes: int) -> None:
        self._memory = memory
        self._loop = LoopThread()
        opening = NvmeTier.open(
            path,
            capacity_bytes=capacity_bytes,
            reserve_bytes=0,
            identity=Identity({"model": "benchmark"}),
            chunk_bytes=memory.row_bytes,
        )
        self.tier = self._loop.submit(opening).result()

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return KvtierRequest(self._loop.submit(self._store(keys, [self._memory.row(row) for row in rows])))

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return KvtierRequest(self._loop.submit(self.tier.load(keys, [self._memory.row(row) for row in rows])))

    def flush(self) -> None:
        self._loop.submit(self.tier.flush()).result()

    def close(self) -> None:
        self._loop.submit(self.tier.close()).result()
        self._loop.close()

    async def _store(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> Any:
        return await self.tier.store(keys, buffers)


class PolledRequest:
    """A job of a tier that is asked for what has finished, as vLLM's scheduler does."""

    def __init__(self, owner: VllmFs, job_id: int) -> None:
        self._owner, self._job_id = owner, job_id

    def result(self) -> None:
        while self._job_id not in self._owner.finished:
            self._owner.poll()
            time.sleep(POLL_S)
        if not self._owner.finished.pop(self._job_id):
            raise RuntimeError("vllm_fs: a job failed")


class VllmFs:
    """vLLM's own file-per-chunk tier, with its C extension and its defaults."""

    name = "vllm_fs"

    def __init__(self, path: Path, memory: Memory, capacity_bytes: int) -> None:
        from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

        self._tier = FileSystemTierManager(
            offloading_spec=_spec(), primary_kv_view=memory.table(), tier_type="fs", root_dir=str(path)
        )
        self.finished: dict[int, bool] = {}
        self._jobs = 0

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return self._submit(self._tier.submit_store, keys, rows, is_promotion=False)

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return self._submit(self._tier.submit_load, keys, rows, is_promotion=True)

    def poll(self) -> None:
        for result in self._tier.get_finished_jobs():
            self.finished[result.job_id] = result.success

    def close(self) -> None:
        self._tier.drain_jobs()
        self._tier.shutdown()

    def _submit(
        self, submit: Any, keys: Sequence[bytes], rows: Sequence[int], *, is_promotion: bool
    ) -> Request:
        from vllm.v1.kv_offload.base import ReqContext
        from vllm.v1.kv_offload.tiering.base import TransferJob

        self._jobs += 1
        ids = np.array(rows, np.int32)
        named = [key + bytes(4) for key in keys]  # vLLM's keys end with the number of the KV-cache group
        submit(TransferJob(self._jobs, named, ids, is_promotion, ReqContext(req_id="benchmark")))
        return PolledRequest(self, self._jobs)


def _spec() -> Any:
    """What the file tier reads of an offloading spec."""
    from vllm.v1.kv_offload.config import (
        OffloadingCacheConfig,
        OffloadingConfig,
        OffloadingGroupConfig,
        OffloadingModelConfig,
        OffloadingParallelConfig,
    )

    parallel = OffloadingParallelConfig(
        rank=0,
        world_size=1,
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=False,
    )
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer",), 0),),
        worker_kv_bytes_per_block=4096,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="benchmark",
        model=OffloadingModelConfig("benchmark", "bfloat16"),
        cache=OffloadingCacheConfig(16, 1),
        parallel=parallel,
    )
    events = SimpleNamespace(enable_kv_cache_events=False)
    return SimpleNamespace(config=config, blocks_per_chunk=1, kv_events_config=events)


def fio_bytes_per_second(
    path: Path,
    kind: str,
    *,
    chunk_bytes: int,
    total_bytes: int,
) -> float | None:
    """What fio reaches for the same bytes with O_DIRECT; None where fio is not installed.

    It writes new, preallocated files: the state that everybody's files are in here. The better of two
    set-ups: one thread with io_uring and 16 calls in flight, or four threads with one each.
    """
    if shutil.which("fio") is None:
        return None
    size = max(chunk_bytes, MIB)  # neighbours go together, in ours too
    setups = (["--ioengine=io_uring", "--iodepth=16", "--numjobs=1"], ["--ioengine=psync", "--numjobs=4"])
    return max(_fio(path, kind, size, total_bytes, setup) for setup in setups)


def _fio(path: Path, kind: str, call_bytes: int, total_bytes: int, setup: Sequence[str]) -> float:
    jobs = 4 if "--numjobs=4" in setup else 1
    path.mkdir(exist_ok=True)
    command = [
        "fio",
        "--name=limit",
        f"--directory={path}",
        f"--rw={kind}",
        f"--bs={call_bytes}",
        f"--size={total_bytes // jobs // call_bytes * call_bytes}",
        "--direct=1",
        "--fallocate=posix",
        "--group_reporting",
        f"--runtime={FIO_RUNTIME_MAX_S}",
        "--output-format=json",
        *setup,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    side = json.loads(output[output.index("{") :])["jobs"][0]["read" if kind == "read" else "write"]
    return float(side["bw_bytes"])


def drop_page_cache_of(path: Path) -> None:
    """Write back and forget the cached pages of every file under `path`, so that the next read is cold."""
    for directory, _, names in os.walk(path):
        for name in names:
            fd = os.open(Path(directory, name), os.O_RDONLY)
            try:
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def keep_apart(root: Path) -> None:
    """Have ext4 put each directory that is made in `root` into a region of its own; elsewhere, do nothing.

    ext4 without a journal does not use the inode of a deleted file again for minutes, and looks at each such
    inode of a region whenever it makes a file there. Those who make a file a chunk would pay for what the
    run before has deleted: their stores were up to ten times slower. A server's drive is not in that state.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _TOP_OF_TREES))
    except OSError:
        return  # another file system
    finally:
        os.close(fd)
