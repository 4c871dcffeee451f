"""kvtier's NVMe tier below vLLM's own CPU tier: an entry of `secondary_tiers` of its `TieringOffloadingSpec`.

    {"type": "KvtierNvmeTier", "module_path": "kvtier.factory.vllm",
     "path": "/mnt/nvme0/kvtier", "capacity": "2TiB"}

The entry's other keys are those of an `nvme` tier in a tier-config document. The rows of vLLM's CPU tier have
the layout of kvtier's slots, so a directory can serve servers of both kinds. What the interface does not
give: there is no call when the server resets its cache, so nothing is invalidated then (raise
`weights_epoch`); a load cannot be given up at a deadline, as vLLM would reuse its row at once; and nothing
says whether the model is served other than its files say (`served`), so such servers need a directory each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from ...engine.bounded import ended
from ...engine.chain import ChainStats
from ...engine.events import EventLog
from ...engine.lifetime import STEP_S
from ...engine.loop import LoopThread
from ...tiers.base import Buffer, ChunkKey, Failure, GuardsItself, Outcome, RemoveReason
from ...tiers.breaker import Breaker
from ...tiers.errors import TierError
from ...tiers.histogram import Durations
from ...tiers.nvme.store.namespaces import Identity
from ..base import PART_ALIGNMENT_BYTES, TierContext
from ..builtin import NvmeFactory
from ..entries import NvmeConfig
from ..room import cap_of, refuse_no_room, room_remarks, rooms_of
from ..validation import validated
from . import metrics
from .events import offloading_events
from .facts import ServerFacts, of_offloading_config
from .identity import identity_fields, warn_of_random_hashes
from .server import DRAIN_S
from .telling.facts import LABELS, NAMESPACE_DIGITS, TierFacts, Value

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata, OffloadingSpec

logger = logging.getLogger(__name__)

FORGET_FAILED_S = (
    30.0  # a chunk that failed to load is a miss for so long: its request would ask again at once
)
FAILED_MAX = 65536  # such chunks remembered; with more, the drive is what fails, and the breaker is open

# Releases differ in what a job's rows are called, and in how much they want to know of its end.
_ROWS = "chunk_ids" if "chunk_ids" in TransferJob.__dataclass_fields__ else "block_ids"
_RESULT = frozenset(JobResult.__dataclass_fields__)

_Call = Callable[[Sequence[ChunkKey], Sequence[Buffer]], Coroutine[Any, Any, Outcome]]


class KvtierNvmeTier(SecondaryTierManager):
    """Runs in the scheduler; no call but `drain_jobs` and `shutdown` waits for a drive.

    Raises:
        ConfigError: the entry is wrong; the message names the key and the fix.
        TierUnavailable, IdentityMismatch: the directory cannot be used.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        weights_epoch: int = 0,
        **entry: Any,
    ) -> None:
        detector = {} if backpressure_detector is None else {"backpressure_detector": backpressure_detector}
        super().__init__(
            offloading_spec=offloading_spec, primary_kv_view=primary_kv_view, tier_type=tier_type, **detector
        )
        assert primary_kv_view.strides is not None, "one stride a dimension, as vLLM promises"
        self.locality = Locality.LOCAL  # a request may leave local tiers out
        self._row_bytes = primary_kv_view.strides[0]
        self._rows = primary_kv_view.cast("B")
        config = validated(NvmeConfig, {"type": "nvme", **entry}, tier_type)
        config = config.resolve(chunk_bytes=self._row_bytes, json_path=tier_type)
        rooms = rooms_of(config.wanted(tier_type), chunk_bytes=self._row_bytes)
        refuse_no_room(rooms)
        for remark in room_remarks(rooms):
            logger.warning("%s", remark)
        cap = cap_of(rooms)
        facts = of_offloading_config(offloading_spec.config)
        fields = {**_identity(facts), "weights_epoch": str(weights_epoch)}
        context = TierContext(part_bytes=self._row_bytes, parts=1, identity=fields, json_path=tier_type)
        self._loop = LoopThread()
        try:
            tier = self._loop.submit(NvmeFactory.open(config, context)).result()
        except BaseException:
            self._loop.close()
            raise
        self._facts = TierFacts(
            tier=tier.name,
            capacity_bytes=config.capacity_bytes,
            cap_bytes=cap.size_bytes,
            bound_by=cap.bound_by,
            capacity_tokens=int(cap.size_bytes // self._row_bytes * facts.chunk_tokens),
            chunk_bytes=self._row_bytes,
            chunk_tokens=facts.chunk_tokens,
            namespace=Identity(context.identity).digest.hex()[:NAMESPACE_DIGITS],
        )
        warn_of_random_hashes()
        guarded = isinstance(tier, GuardsItself)
        self._tier = tier if guarded else Breaker(tier, slow_s=config.load_deadline_s)
        self._events = EventLog() if facts.has_events else None
        if self._events is not None:
            self._events.watch([self._tier])
        self._under_way: dict[int, Future[Outcome]] = {}
        self._finished: deque[JobResult] = deque()  # appended on the loop thread, taken on the scheduler's
        self._failed_at_s: dict[OffloadKey, float] = {}  # changed on the loop thread only; the oldest first
        # Changed on the loop thread only:
        self._took_us = Counter({"loaded_us": 0, "stored_us": 0})
        self._durations = {"load_s": Durations(), "store_s": Durations()}
        self._reporter = metrics.Reporter(self._stats)
        self._loop.submit(self._reporter.run())  # until the loop is closed
        self._closed = False

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return metrics.definitions()

    @classmethod
    def config_info_keys(cls, tier_config: dict[str, Any]) -> tuple[str, ...]:
        return tuple(label for label in LABELS if label != "tier")  # vLLM adds that one

    def config_info(self) -> Mapping[str, Value]:
        labels = self._facts.labels()
        return {name: labels[name] for name in self.config_info_keys({})}

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._failed_at_s and self._has_failed(key):
            return LookupResult.MISS
        (found,) = self._tier.lookup([key])
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(self._tier.store, job_metadata)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(self._tier.load, job_metadata)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        while self._finished:
            result = self._finished.popleft()
            del self._under_way[result.job_id]
            self._reporter.busy()
            yield result

    def has_pending_work(self) -> bool:
        return bool(self._under_way) or self._reporter.is_owed()

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def drain_jobs(self) -> None:
        # vLLM uses the rows of these jobs again: they have to end, or the drive is stuck for good.
        wait(self._under_way.values())

    def take_events(self) -> Iterable[Any]:
        return offloading_events(self._events.take()) if self._events is not None else ()

    def get_stats(self) -> OffloadingConnectorStats | None:
        return self._reporter.report()

    def shutdown(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._loop.submit(self._close()).result()  # raises where the rows must stay: then vLLM keeps them
        finally:
            self._loop.close()
        self._rows.release()

    def _submit(self, call: _Call, job: TransferJob) -> None:
        keys = list(job.keys)
        starts = [int(row) * self._row_bytes for row in getattr(job, _ROWS)]
        assert all(0 <= start < len(self._rows) for start in starts), "vLLM names rows of its own view"
        buffers = [self._rows[start : start + self._row_bytes] for start in starts]
        self._under_way[job.job_id] = self._loop.submit(self._run(call, job, keys, buffers))

    async def _run(
        self, call: _Call, job: TransferJob, keys: Sequence[OffloadKey], buffers: Sequence[Buffer]
    ) -> Outcome:
        began_s = time.monotonic()
        outcome = Outcome()
        try:
            outcome = await call(keys, buffers)
        except Exception:  # the server asserts that each job is reported
            logger.exception("a transfer between memory and the drive failed; its chunks are misses")
        succeeded = [OffloadKey(key) for key in outcome.succeeded]
        if job.is_promotion:
            self._remember_failed(set(keys).difference(succeeded))
        self._tell(outcome, is_store=not job.is_promotion)
        took_s = time.monotonic() - began_s
        self._took_us["loaded_us" if job.is_promotion else "stored_us"] += int(took_s * 1_000_000)
        self._durations["load_s" if job.is_promotion else "store_s"].add(took_s)
        result = {
            "job_id": job.job_id,
            "success": len(succeeded) == len(keys),
            "successful_keys": succeeded if job.is_promotion else None,
            "transfer_time": took_s,
            "transfer_bytes": len(succeeded) * self._row_bytes,
        }
        told = {name: value for name, value in result.items() if name in _RESULT}
        self._finished.append(JobResult(**told))
        return outcome

    def _tell(self, outcome: Outcome, *, is_store: bool) -> None:
        if self._events is None:
            return
        if is_store:
            self._events.stored(self._tier.name, outcome.succeeded)
        corrupt = [key for key, reason in outcome.failed.items() if reason is Failure.CORRUPT]
        self._events.removed(self._tier.name, corrupt, RemoveReason.CORRUPT)

    async def _close(self) -> None:
        if not await ended("the transfers under way", self._drained(), DRAIN_S):
            logger.warning("kvtier: shut down with %d transfers under way", len(self._under_way))
        await ended("the last flush", self._tier.flush(), STEP_S)
        if not await ended("the tier", self._tier.close(), STEP_S):
            raise TierError(self._tier.name, "the drive hangs; something may still use the rows")

    async def _drained(self) -> None:
        await asyncio.gather(*map(asyncio.wrap_future, self._under_way.values()), return_exceptions=True)

    def _remember_failed(self, keys: Iterable[OffloadKey]) -> None:
        failed_at_s, now_s = self._failed_at_s, time.monotonic()
        for key in keys:
            failed_at_s.pop(key, None)  # to the end with it
            failed_at_s[key] = now_s
        while failed_at_s:
            oldest = next(iter(failed_at_s))
            if len(failed_at_s) <= FAILED_MAX and now_s - failed_at_s[oldest] < FORGET_FAILED_S:
                break
            del failed_at_s[oldest]

    def _has_failed(self, key: OffloadKey) -> bool:
        failed_at_s = self._failed_at_s.get(key)
        return failed_at_s is not None and time.monotonic() - failed_at_s < FORGET_FAILED_S

    def _stats(self) -> ChainStats:
        stats = self._tier.stats()
        counters = {**stats.counters, **self._took_us}
        histograms = {name: durations.histogram() for name, durations in self._durations.items()}
        counted = replace(stats, counters=counters, histograms=histograms)
        return ChainStats({self._tier.name: counted}, {self._tier.name: len(self._under_way)}, 0)


def _identity(facts: ServerFacts) -> dict[str, str]:
    """The namespace of kvtier's own spec where rows and slots are laid out alike, else one of its own."""
    fields = dict(identity_fields(facts))
    part_bytes = facts.rank_block_bytes * facts.blocks_per_chunk
    one_part = facts.parallel.world_size == 1 or facts.is_replicated
    if not one_part and part_bytes % PART_ALIGNMENT_BYTES:
        fields["parts"] = "without padding between ranks"
    return fields
