"""The plugin for vLLM 0.21 to 0.24, whose workers route transfers to handlers.

0.21 and 0.22 do not report the end of a request, so what it holds and its prompt are leased. In 0.21 it
has no name either; its context names it, which lives as long as the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import GPULoadStoreSpec, OffloadingManager

from ....engine.movement.placement import Presence
from ....tiers.device.copyplan import Spans
from ..server import SchedulerSide
from ..worker import CopyWorker
from .canonical import spans
from .handler import Handler
from .leases import Leases
from .manager import KeyedManager, SlotsSpec, group_of
from .spec_of_config import SpecOfConfig

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import (
        CanonicalKVCaches,
        OffloadKey,
        ReqContext,
    )

_RESULT = {
    Presence.READY: True,
    Presence.PENDING: None,  # ask again
    Presence.ASKING: None,
    Presence.LATE: False,
    Presence.FULL: False,
    Presence.MISS: False,
}


class Manager(KeyedManager):
    """Runs in the scheduler."""

    def __init__(self, side: SchedulerSide) -> None:
        super().__init__(side)
        tells_ends = hasattr(OffloadingManager, "on_request_finished")
        self._leases = None if tells_ends else Leases(self._end)
        if not tells_ends:
            side.tells_no_ends()
        self._leased: dict[str, ReqContext] = {}  # keeps the name that a leased request has its own

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> bool | None:
        presence = self._placement.lookup(self._request(req_context), key)
        self._side.chain.start_queued()  # not every release says when a step has asked all
        return _RESULT[presence]

    def on_schedule_end(self) -> None:
        self._placement.sweep()

    def take_events(self) -> Iterable[Any]:
        if self._leases is not None:  # then this is the only call in every step
            self._placement.sweep()
        return super().take_events()

    def _end(self, request: str) -> None:
        del self._leased[request]
        self._placement.forget(request)

    def _request(self, req_context: ReqContext) -> str:
        request = str(getattr(req_context, "req_id", id(req_context)))
        if self._leases is not None:
            self._leased[request] = req_context
            self._leases.renew(request)
        return request


class GroupHandler(Handler):
    """Device blocks of several groups."""

    def __init__(self, copies: CopyWorker) -> None:
        super().__init__(copies, GPULoadStoreSpec)

    def spans(self, spec: GPULoadStoreSpec, slots_count: int) -> Spans:
        return spans(spec)


class CompositeOffloadingSpec(SpecOfConfig):
    """One offloading spec for the whole chain of a tier config."""

    def get_manager(self) -> Manager:
        return Manager(self._plugin.scheduler(group_of))

    def get_handlers(self, kv_caches: CanonicalKVCaches) -> Iterator[tuple[type[Any], type[Any], Handler]]:
        handler = GroupHandler(self._copies(kv_caches))
        yield GPULoadStoreSpec, SlotsSpec, handler
        yield SlotsSpec, GPULoadStoreSpec, handler
