"""vLLM's own tiering spec, made to run without a GPU: its worker is replaced by a copy on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from kvtier.tiers.device.copies import CopyJob
from kvtier.tiers.device.copyplan import Spans
from kvtier.tiers.device.gpu import GpuTier


class CpuTieringSpec(TieringOffloadingSpec):
    """The scheduler's side is vLLM's own, untouched."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        gpu = GpuTier.of_tensors(
            [tensor.tensor for tensor in kv_caches.tensors],
            blocks_per_chunk=self.blocks_per_chunk,
            groups=[
                [(ref.tensor_idx, ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs
            ],
        )
        return CpuWorker(gpu, region, region._worker_offset)


class CpuWorker(OffloadingWorker):
    """Copies between CPU tensors and rows of the region, in the order of submission."""

    def __init__(self, gpu: GpuTier, region: Any, offset: int) -> None:
        self._gpu = gpu
        self._region = region
        self._first = region._base.data_ptr() + offset
        self._jobs: dict[int, CopyJob] = {}

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        self._jobs[job_id] = self._gpu.submit_store(_spans(src_spec), self._rows(dst_spec))
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        self._jobs[job_id] = self._gpu.submit_load(_spans(dst_spec), self._rows(src_spec))
        return True

    def get_finished(self) -> list[TransferResult]:
        ended = [job_id for job_id, job in self._jobs.items() if job.done()]
        jobs = [(job_id, self._jobs.pop(job_id)) for job_id in ended]
        return [TransferResult(i, job.error is None, job.size_bytes, job.seconds) for i, job in jobs]

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids & self._jobs.keys():
            self._jobs[job_id].wait(None)

    def shutdown(self) -> None:
        self._gpu.close_now()
        self._region.cleanup()

    def _rows(self, spec: LoadStoreSpec) -> Any:
        return self._first + np.asarray(spec.block_ids, np.int64) * self._region._row_stride


def _spans(spec: GPULoadStoreSpec) -> Spans:
    return Spans(spec.block_ids.astype(np.int64), tuple(spec.group_sizes), tuple(spec.block_indices))
