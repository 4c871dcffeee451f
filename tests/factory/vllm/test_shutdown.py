"""A server ends within a bound, whatever its disk does, and says what it left behind."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import numpy as np
from lifetime_rig import Disk
from standin_servers import BLOCK_BYTES, offloading_config
from vllm.v1.kv_offload.tiering.base import TransferJob

from kvtier.engine import lifetime
from kvtier.engine.loop import LoopThread
from kvtier.factory import composite, registry
from kvtier.factory.base import TierConfig, TierContext
from kvtier.factory.builtin import NvmeFactory
from kvtier.factory.composite import CompositeSpec
from kvtier.factory.vllm import native, server
from kvtier.factory.vllm.native import KvtierNvmeTier
from kvtier.factory.vllm.server import Geometry, SchedulerSide
from kvtier.tiers.base import Tier
from kvtier.tiers.errors import TierError
from kvtier.tiers.testing import MemoryTier

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

KEYS = [b"one-----", b"two-----"]
SOON_S = 0.2

disk: Disk


class DiskFactory:
    Config = TierConfig

    @staticmethod
    async def open(config: TierConfig, context: TierContext) -> Tier:
        return disk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk in the test's hand, and patience for a fraction of a second."""
    global disk
    disk = Disk()
    monkeypatch.setattr(registry.TIERS, "places", dict(registry.TIERS.places))
    registry.register_tier("disk", __name__, "DiskFactory")
    monkeypatch.setattr(server, "DRAIN_S", SOON_S)
    monkeypatch.setattr(lifetime, "STEP_S", SOON_S)
    monkeypatch.setattr(composite, "CLOSE_S", SOON_S)
    monkeypatch.setattr(native, "DRAIN_S", SOON_S)
    monkeypatch.setattr(native, "STEP_S", SOON_S)
    monkeypatch.setattr("kvtier.engine.loop.JOIN_S", SOON_S)
    yield
    disk.lets_go.set()


def scheduler() -> SchedulerSide:
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": "64KiB"}, {"type": "disk"}]
    spec = CompositeSpec.from_config({"version": 1, "tiers": tiers})
    server = f"test-{uuid.uuid4()}"
    geometry = Geometry(server=server, part_bytes=4096, ranks=1, parts=1, chunk_tokens=16.0)
    return SchedulerSide(spec, geometry, lambda _: {}, group_tokens={b"": 16})


def composite_of(side: SchedulerSide) -> CompositeSpec:
    spec = side._lifetime._spec
    assert isinstance(spec, CompositeSpec)
    return spec


def store(side: SchedulerSide) -> None:
    side.placement.prepare_store("r", KEYS)
    side.placement.complete_store(KEYS, success=True)


def test_what_waits_reaches_the_disk_before_the_end() -> None:
    side = scheduler()
    store(side)
    side.close()
    side.close()
    assert sorted(key[-len(KEYS[0]) :] for key in disk.chunks) == KEYS, "behind the digest of their namespace"
    assert disk.closed.is_set()


def test_a_disk_that_fails_to_sync_is_told_and_closed(caplog: pytest.LogCaptureFixture) -> None:
    side = scheduler()
    disk.fails = True
    side.close()
    assert "the drive refused" in caplog.text
    assert disk.closed.is_set()


def test_a_disk_that_hangs_does_not_keep_a_server_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    side = scheduler()
    disk.lets_go.clear()
    store(side)
    assert disk.stores.wait(10)
    side.close()
    assert "with 2 chunks not yet in the last tier" in caplog.text
    assert "the tiers are left as they are" in caplog.text
    assert not disk.closed.is_set(), "the disk still reads from the arena"
    disk.lets_go.set()
    asyncio.run(composite_of(side).close())


async def test_a_tier_that_hangs_in_its_close_keeps_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(MemoryTier):
        async def close(self) -> None:

            await asyncio.Event().wait()

    spec, above = CompositeSpec.from_config({"version": 1, "tiers": TWO}), Disk()
    spec._tiers = [above, Stuck("stuck")]
    with caplog.at_level(logging.ERROR):
        await spec.close()
    assert above.closed.is_set()
    assert "the stuck tier" in caplog.text


TWO = [{"type": "gpu"}, {"type": "pinned", "capacity": "64KiB"}]


def below_vllms_own(directory: Path, monkeypatch: pytest.MonkeyPatch) -> KvtierNvmeTier:
    (directory / "config.json").write_text("{}")
    monkeypatch.setattr(NvmeFactory, "open", DiskFactory.open)
    return KvtierNvmeTier(
        offloading_spec=SimpleNamespace(config=offloading_config({}, directory)),
        primary_kv_view=memoryview(bytearray(2 * BLOCK_BYTES)).cast("B", (2, BLOCK_BYTES)),
        tier_type="KvtierNvmeTier",
        path=str(directory / "nvme"),
        capacity=64 << 20,
        reserve=0,
    )


def submit(tier: KvtierNvmeTier) -> None:
    rows = np.arange(len(KEYS))
    job = {"job_id": 1, "keys": KEYS, native._ROWS: rows, "is_promotion": False, "req_context": None}
    tier.submit_store(TransferJob(**job))


def test_below_vllms_own_tier_too_what_is_under_way_ends_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = below_vllms_own(tmp_path, monkeypatch)
    submit(tier)
    disk.fails = True
    tier.shutdown()
    assert sorted(disk.chunks) == KEYS
    assert disk.closed.is_set()


def test_rows_that_a_hanging_disk_may_still_use_are_not_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(Disk):
        async def close(self) -> None:

            await asyncio.Event().wait()

    global disk
    disk = Hangs()
    tier = below_vllms_own(tmp_path, monkeypatch)
    disk.lets_go.clear()
    submit(tier)
    assert disk.stores.wait(10)
    with pytest.raises(TierError, match="may still use the rows"):
        tier.shutdown()


def test_a_loop_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    loop, lets_go = LoopThread(), threading.Event()
    loop.call_soon(lets_go.wait)  # type: ignore[arg-type]
    loop.close()
    assert "left behind" in caplog.text
    lets_go.set()
