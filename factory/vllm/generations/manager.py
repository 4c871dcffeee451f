"""The scheduler's role in vLLM 0.21 and newer, where keys name chunks and contexts name requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.kv_offload import base

from ....tiers.base import ChunkKey
from ..events import offloading_events
from ..facts import GROUP_BYTES
from ..scheduling.placement import ServerPlacement, Told
from ..scheduling.progress import Ends
from ..server import SchedulerSide

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import (
        LoadStoreSpec,
        OffloadKey,
        PrepareStoreOutput,
        ReqContext,
        RequestOffloadingContext,
    )

_TELLS_POSITIONS = hasattr(base.ReqContext, "get_offload_key_position")  # from 0.31 on


class SlotsSpec(base.LoadStoreSpec):
    """Which slots a job reads or writes; travels by pickle from the scheduler to the workers."""

    def __init__(self, slots: list[int]) -> None:
        self.slots = np.array(slots, np.int32)

    @staticmethod
    def medium() -> str:
        """Asked up to 0.25, and part of vLLM's own metrics there."""
        return "CPU"

    def __repr__(self) -> str:
        return f"SlotsSpec({self.slots.tolist()})"


class KeyedManager(base.OffloadingManager):
    """What all these generations share. No call waits for a drive or a device, and none raises for their
    faults."""

    def __init__(self, side: SchedulerSide) -> None:
        self._side = side
        self._placement: ServerPlacement = side.placement
        self._reporter = side.reporter()

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        return SlotsSpec(self._placement.prepare_load(self._request(req_context), keys))

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._placement.complete_load(self._request(req_context), keys)

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        wanted = list(keys)
        plan = self._placement.prepare_store(
            self._request(req_context), wanted, positions_of(wanted, req_context)
        )
        if plan is None:
            return None
        return base.PrepareStoreOutput(
            [base.OffloadKey(key) for key in plan.keys],
            SlotsSpec(plan.slots),
            [base.OffloadKey(key) for key in plan.evicted],
        )

    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        self._placement.complete_store(keys, success)
        self._reporter.busy()

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        used = list(keys)
        self._placement.touch(self._request(req_context), used, positions_of(used, req_context))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return base.RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._placement.finish(self._request(req_context))
        self._reporter.busy()

    def has_pending_work(self) -> bool:
        # Only a step frees orphaned slots, and only a step reports what has changed since the last one.
        return self._placement.orphaned_count > 0 or self._reporter.is_owed()

    def reset_cache(self) -> None:
        self._placement.reset()
        self._reporter.busy()

    def take_events(self) -> Iterable[Any]:
        self._placement.step_ended()  # every release takes them when the results of a step are there
        log = self._side.events
        return () if log is None else offloading_events(log.take(), self._side.foreign)

    def get_stats(self) -> OffloadingConnectorStats | None:
        return self._reporter.report()

    def shutdown(self) -> None:
        self._side.close()

    def _request(self, req_context: ReqContext) -> str:
        return str(req_context.req_id)


def group_of(key: ChunkKey) -> bytes:
    """Name the group of layers of a chunk."""
    return key[-GROUP_BYTES:]


def position_of(key: OffloadKey, req_context: ReqContext) -> int | None:
    """The position of a chunk in its prompt, where vLLM tells it."""
    return req_context.get_offload_key_position(key) if _TELLS_POSITIONS else None


def ends_of(req_context: ReqContext) -> Ends:
    """After how many tokens each chunk of the prompt ends, where vLLM keeps that.

    It has no method for all of them. A release that keeps them otherwise is as one that does not.
    """
    ends = getattr(req_context, "_offload_key_positions", None)
    return ends if isinstance(ends, dict) else None


def positions_of(keys: Sequence[OffloadKey], req_context: ReqContext) -> Told:
    """The positions of chunks in their prompt; None from releases that tell none."""
    return [position_of(key, req_context) for key in keys] if _TELLS_POSITIONS else None
