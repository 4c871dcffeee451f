"""The worker's role up to vLLM 0.24, which routes transfers to handlers by their media."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import is_dataclass
from typing import Any

from vllm.v1.kv_offload.worker.worker import OffloadingHandler, TransferResult

from ....tiers.device.copyplan import Spans
from ..worker import CopyWorker

_NAMES_FIELDS = is_dataclass(TransferResult)  # up to 0.15 a result is a pair


class Handler(OffloadingHandler):
    """Both directions of one worker. It is registered with vLLM once for each direction."""

    def __init__(self, copies: CopyWorker, device: type[Any]) -> None:
        """Make the handler; `device` is vLLM's class of specs that name device blocks, others name slots."""
        self._copies = copies
        self._device = device
        self._types: dict[int, tuple[str, str]] = {}

    @abstractmethod
    def spans(self, spec: Any, slots_count: int) -> Spans:
        """Read the device blocks of a transfer of so many slots."""

    def transfer_async(self, job_id: int, spec: tuple[Any, Any]) -> bool:
        source, target = spec
        self._types[job_id] = source.medium(), target.medium()
        if isinstance(source, self._device):
            self._copies.store(job_id, self.spans(source, len(target.slots)), target.slots)
        else:
            self._copies.load(job_id, self.spans(target, len(source.slots)), source.slots)
        return True

    def get_finished(self) -> list[TransferResult]:
        finished: list[TransferResult] = self._copies.finished(self._result)
        self._copies.mark()  # up to 0.19 the scheduler learns from the marks alone that a store has ended
        return finished

    def wait(self, job_ids: set[int]) -> None:
        self._copies.wait(job_ids)

    def shutdown(self) -> None:
        self._copies.close()

    def _result(self, job_id: int, succeeded: bool, size_bytes: int, seconds: float) -> Any:
        media = self._types.pop(job_id)
        if not _NAMES_FIELDS:
            return job_id, succeeded
        return TransferResult(job_id, succeeded, size_bytes, seconds, transfer_type=media)
