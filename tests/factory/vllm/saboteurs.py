"""Offloading specs that watch kvtier's plugin, or spoil what it loads.

`RecordingSpec` writes a digest of every chunk as it left the device and as it came back, a JSON line each, to
the file named in the connector's `records`; `RanksRecordingSpec` to one for each rank, with a dot and the
rank behind that name. `SaboteurSpec` does to each load what the file named in `sabotage` says at that
moment: "none", "swap" or "zero". `ForgetfulSpec`, for caches with any groups, loads zeros once the file named
in `forgets` is there. `SlowDriveSpec` has a drive as slow as a file says.

Both build on the shipped spec and stand where vLLM calls it, so everything below runs as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    TransferResult,
)

from kvtier.factory.vllm.generations.g import CompositeOffloadingSpec, Manager, SlotsSpec, Worker
from kvtier.factory.vllm.server import SchedulerSide
from kvtier.tiers.base import Buffer, ChunkKey, Outcome
from kvtier.tiers.device.copies import Lane
from kvtier.tiers.device.copyplan import CopyPlan
from kvtier.tiers.device.gpu import CpuCopies

Blocks = list[int]

LATE_STORE_S = 0.02  # several steps of a server with a tiny model
GATE_POLL_S = 0.005


class DeviceBlocks:
    """The device's KV blocks by index; for one KV-cache group and chunks of one block."""

    def __init__(self, caches: CanonicalKVCaches) -> None:
        (refs,) = caches.group_data_refs
        self._rows = [
            caches.tensors[ref.tensor_idx].tensor.view(torch.int8)[:, : ref.page_size_bytes] for ref in refs
        ]

    def digest(self, block: int) -> str:
        """A digest of a block's bytes in all layers."""
        digest = hashlib.blake2b(digest_size=16)
        for rows in self._rows:
            digest.update(rows[block].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def clear(self, block: int) -> None:
        """Make a block all zeros in all layers."""
        for rows in self._rows:
            rows[block].zero_()


class WatchedWorker(Worker):
    """The plugin's worker, which shows what goes by: stores when submitted, loads when finished."""

    def __init__(
        self,
        worker: Worker,
        stored: Callable[[LoadStoreSpec, Blocks], None],
        loaded: Callable[[LoadStoreSpec, Blocks], None],
    ) -> None:
        super().__init__(worker._copies)
        self._stored = stored
        self._loaded = loaded
        self._loads: dict[int, tuple[LoadStoreSpec, Blocks]] = {}

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        self._stored(dst_spec, src_spec.block_ids.tolist())
        return super().submit_store(job_id, src_spec, dst_spec)

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        self._loads[job_id] = (src_spec, dst_spec.block_ids.tolist())
        return super().submit_load(job_id, src_spec, dst_spec, expedited)

    def get_finished(self) -> list[TransferResult]:
        finished = super().get_finished()
        for result in finished:
            if load := self._loads.pop(result.job_id, None):
                self._loaded(*load)
        return finished


class NamedSlots(SlotsSpec):
    """Slots together with the keys of what they hold; workers are told only the slots."""

    def __init__(self, slots: SlotsSpec, keys: Collection[OffloadKey]) -> None:
        super().__init__(slots.slots.tolist())
        self.keys = [bytes(key).hex() for key in keys]


class NamingManager(Manager):
    """The plugin's manager, which tells the workers the keys as well."""

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        return _named(super().prepare_load(keys, req_context), keys)

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        output = super().prepare_store(keys, req_context)
        if output is None:
            return None
        output.store_spec = _named(output.store_spec, output.keys_to_store)
        return output


class TallyingManager(NamingManager):
    """A naming manager that notes what resets and ends of requests interrupt."""

    def __init__(self, side: SchedulerSide, tally: Path) -> None:
        super().__init__(side)
        self._tally = tally

    def reset_cache(self) -> None:
        stores, loads = (
            len(self._placement._inflight._storing),
            sum(map(len, self._placement._loading.values())),
        )
        self._note({"event": "reset", "stores": stores, "loads": loads})
        super().reset_cache()

    def on_request_finished(self, req_context: ReqContext) -> None:
        loads = len(self._placement._loading.get(self._request(req_context), {}))
        self._note({"event": "end", "loads": loads})
        super().on_request_finished(req_context)

    def _note(self, event: dict[str, object]) -> None:
        with self._tally.open("a") as file:
            file.write(json.dumps(event) + "\n")


class Recorder:
    """Appends what it is shown to a file; each line is whole, whoever else writes."""

    def __init__(self, blocks: DeviceBlocks, file: Path) -> None:
        self._blocks = blocks
        self._file = file

    def stored(self, slots: LoadStoreSpec, block_ids: Blocks) -> None:
        """Record chunks that are about to leave the device."""
        self._record("store", slots, block_ids)

    def loaded(self, slots: LoadStoreSpec, block_ids: Blocks) -> None:
        """Record chunks that have come back to it."""
        self._record("load", slots, block_ids)

    def _record(self, direction: str, slots: LoadStoreSpec, block_ids: Blocks) -> None:
        assert isinstance(slots, NamedSlots)
        with self._file.open("a") as file:
            for key, block in zip(slots.keys, block_ids, strict=True):
                line = {"direction": direction, "key": key, "digest": self._blocks.digest(block)}
                file.write(json.dumps(line) + "\n")


class RecordingSpec(CompositeOffloadingSpec):
    """The shipped spec, with a record of every chunk's bytes on the device."""

    def get_manager(self) -> Manager:
        return NamingManager(super().get_manager()._side)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        recorder = Recorder(DeviceBlocks(kv_caches), self._records())
        return WatchedWorker(super().get_worker(kv_caches), recorder.stored, recorder.loaded)

    def _records(self) -> Path:
        return Path(self.extra_config["records"])


class StormyCopies(CpuCopies):
    """Stores that begin late, as behind a device's long queue; loads that wait while a file is there."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self._gate = gate

    def copy(self, plan: CopyPlan, lane: Lane) -> float:
        time.sleep(LATE_STORE_S if lane is Lane.STORE else 0)
        while lane is Lane.LOAD and self._gate.exists():
            time.sleep(GATE_POLL_S)
        return super().copy(plan, lane)


class StormSpec(RecordingSpec):
    """The same, with transfers that take their time: see `StormyCopies` for the file `gate`. What is
    interrupted meanwhile is noted in the file `tally`."""

    def get_manager(self) -> Manager:
        side = CompositeOffloadingSpec.get_manager(self)._side
        return TallyingManager(side, Path(self.extra_config["tally"]))

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        worker = super().get_worker(kv_caches)
        worker._copies._gpu._copies.close()
        worker._copies._gpu._copies = StormyCopies(Path(self.extra_config["gate"]))
        return worker


class RanksRecordingSpec(RecordingSpec):
    """The shipped spec, with a record for each rank."""

    def _records(self) -> Path:
        return Path(f"{super()._records()}.{self.config.parallel.rank}")


class SaboteurWorker(WatchedWorker):
    """The plugin's worker, which spoils loads as the file `sabotage` says at that moment."""

    def __init__(self, worker: Worker, blocks: DeviceBlocks, sabotage: Path) -> None:
        super().__init__(worker, stored=_ignore, loaded=self._spoil)
        self._blocks = blocks
        self._sabotage = sabotage

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, SlotsSpec)
        if self._sabotage.read_text() == "swap":
            src_spec.slots[[0, -1]] = src_spec.slots[[-1, 0]]
        return super().submit_load(job_id, src_spec, dst_spec, expedited)

    def _spoil(self, _: LoadStoreSpec, block_ids: Blocks) -> None:
        if self._sabotage.read_text() == "zero":
            for block in block_ids:
                self._blocks.clear(block)


class SaboteurSpec(CompositeOffloadingSpec):
    """The shipped spec, whose loads bring wrong bytes on demand."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        sabotage = Path(self.extra_config["sabotage"])
        return SaboteurWorker(super().get_worker(kv_caches), DeviceBlocks(kv_caches), sabotage)


class ForgetfulWorker(Worker):
    """The plugin's worker, which wipes slots before it loads from them."""

    def __init__(self, worker: Worker, forgets: Path) -> None:
        super().__init__(worker._copies)
        self._arena = worker._copies._arena
        self._forgets = forgets

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, SlotsSpec)
        if self._forgets.exists():
            for slot in src_spec.slots.tolist():
                self._arena.buffer(slot)[:] = bytes(self._arena.slot_bytes)
        return super().submit_load(job_id, src_spec, dst_spec, expedited)


class ForgetfulSpec(CompositeOffloadingSpec):
    """The shipped spec, whose loads bring nothing on demand."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> Worker:
        return ForgetfulWorker(super().get_worker(kv_caches), Path(self.extra_config["forgets"]))


def _ignore(_slots: LoadStoreSpec, _blocks: Blocks) -> None: ...


def _named(slots: LoadStoreSpec, keys: Collection[OffloadKey]) -> NamedSlots:
    assert isinstance(slots, SlotsSpec)
    return NamedSlots(slots, keys)


class SlowDriveSpec(CompositeOffloadingSpec):
    """Loads from below no faster than the file named in `drive_bytes_per_s` says, once it is there."""

    def get_manager(self) -> Manager:
        manager = super().get_manager()
        (drive,) = manager._side.chain._lower.all
        load, rate = drive.load, Path(self.extra_config["drive_bytes_per_s"])

        async def slow(keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
            await asyncio.sleep(sum(buffer.nbytes for buffer in buffers) / _told(rate))
            return await load(keys, buffers)

        drive.load = slow  # type: ignore[method-assign]
        return manager


def _told(rate: Path) -> float:
    return float(rate.read_text()) if rate.exists() else math.inf
