"""LMCache's local disk backend as a `Store`: a file per chunk, four threads, its O_DIRECT switched on.

It is measured where `import lmcache` works; README.md says how to get there without CUDA.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .base import Request
from .memory import Memory

CAPACITY_GIB = 64  # nothing is near it
CALLERS = 16  # its loads block their caller: as many threads as requests at once


class _Rows:
    """Stands in for LMCache's CPU pool: what is loaded goes into the rows that were asked for."""

    def __init__(self) -> None:
        self.of_thread = threading.local()

    def allocate(self, *_shape_and_format: Any, **_options: Any) -> Any:
        return next(self.of_thread.objects)


class _Writes:
    """One batch under way; LMCache tells of each chunk that it has written."""

    def __init__(self, count: int) -> None:
        self._left = threading.Semaphore(0)
        self._count = count

    def done(self, _key: Any) -> None:
        self._left.release()

    def result(self) -> None:
        for _ in range(self._count):
            self._left.acquire()


class _Reads:
    def __init__(self, future: Future[list[Any]]) -> None:
        self._future = future

    def result(self) -> None:
        if any(loaded is None for loaded in self._future.result()):
            raise RuntimeError("lmcache: a chunk was not loaded")


class LmcacheDisk:
    """Nothing of LMCache but its disk backend, over the memory that everybody has."""

    name = "lmcache"

    def __init__(self, path: Path, memory: Memory) -> None:
        os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
        os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

        config = LMCacheEngineConfig.from_defaults(
            local_disk=str(path),
            max_local_disk_size=CAPACITY_GIB,
            extra_config={"use_odirect": True},
        )
        self._memory = memory
        self._rows = _Rows()
        self._callers = ThreadPoolExecutor(CALLERS, "lmcache-caller")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lmcache-loop", daemon=True)
        self._thread.start()
        self._backend = LocalDiskBackend(config, self._loop, self._rows, dst_device="cpu")

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        writes = _Writes(len(keys))
        self._backend.batched_submit_put_task(
            [_named(key) for key in keys], self._objects(rows), on_complete_callback=writes.done
        )
        return writes

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return _Reads(self._callers.submit(self._load, keys, rows))

    def close(self) -> None:
        self._callers.shutdown()
        self._backend.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _load(self, keys: Sequence[bytes], rows: Sequence[int]) -> list[Any]:
        self._rows.of_thread.objects = iter(self._objects(rows))
        loaded: list[Any] = self._backend.batched_get_blocking([_named(key) for key in keys])
        return loaded

    def _objects(self, rows: Sequence[int]) -> list[Any]:
        from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

        size_bytes = self._memory.row_bytes
        objects = []
        for row in rows:
            data = torch.from_numpy(np.frombuffer(self._memory.row(row), np.uint8))
            facts = MemoryObjMetadata(
                data.shape, torch.uint8, row * size_bytes, size_bytes, ref_count=1, fmt=MemoryFormat.BINARY
            )
            objects.append(TensorMemoryObj(data, facts, None))
        return objects


def _named(key: bytes) -> Any:
    from lmcache.utils import CacheEngineKey

    return CacheEngineKey("benchmark", 1, 0, int.from_bytes(key[3:], "big"), torch.uint8)
