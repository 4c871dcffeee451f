"""vLLM's own file-per-chunk tier as a `Store`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Request
from .memory import Memory

POLL_S = 0.0002  # between two looks at finished jobs; about its own wake-up cost


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
    """The tier with its C extension and its defaults."""

    name = "vllm_fs"

    def __init__(self, path: Path, memory: Memory) -> None:
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
