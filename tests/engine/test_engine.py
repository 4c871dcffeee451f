"""The library over real tiers: CPU tensors, an arena, a directory."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import BLOCKS, CHUNK_BYTES, EngineRig, config

from kvtier.engine import Job, OffloadEngine
from kvtier.tiers import ClosedError, ConfigError, Failure

KEYS = [b"key-%02d" % i for i in range(BLOCKS)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[EngineRig]:
    rig = EngineRig(config(tmp_path / "nvme"))
    yield rig
    rig.engine.close()


def test_chunks_come_back_from_the_pinned_tier(rig: EngineRig) -> None:
    assert rig.store(KEYS[:4]) == tuple(KEYS[:4])
    assert rig.engine.lookup(KEYS[:6]) == 4
    assert rig.load(KEYS[:4]) == tuple(KEYS[:4])
    rig.idle()


def test_a_job_larger_than_the_pinned_tier_passes_through_it_both_ways(rig: EngineRig) -> None:
    assert rig.store(KEYS) == tuple(KEYS)
    rig.engine.flush(10)
    assert rig.load(KEYS) == tuple(KEYS)
    assert rig.engine.stats().tiers["nvme"].counters["loaded_chunks"] > 0
    rig.idle()


def test_a_missing_key_fails_alone(rig: EngineRig) -> None:
    rig.store(KEYS[:2])
    result = rig.engine.load([KEYS[0], b"absent", KEYS[1]], [0, 1, 2]).wait(10)
    assert result.succeeded == (KEYS[0], KEYS[1])
    assert result.failed == {b"absent": Failure.MISSING}
    rig.idle()


def test_lookup_counts_the_leading_hits_only(rig: EngineRig) -> None:
    rig.store(KEYS[:2])
    assert rig.engine.lookup([KEYS[0], b"absent", KEYS[1]]) == 1
    assert rig.engine.lookup([]) == 0


def test_a_restart_is_warm(tmp_path: Path) -> None:
    document = config(tmp_path / "nvme")
    first = EngineRig(document)
    first.store(KEYS)
    first.engine.close()
    second = EngineRig(document)
    assert second.engine.lookup(KEYS) == len(KEYS)
    assert second.load(KEYS) == tuple(KEYS)
    second.idle()
    second.engine.close()


def test_another_namespace_never_sees_the_chunks(tmp_path: Path) -> None:
    document = config(tmp_path / "nvme")
    first = EngineRig(document, {"model": "tiny", "weights": "1"})
    first.store(KEYS)
    first.engine.close()
    second = EngineRig(document, {"model": "tiny", "weights": "2"})
    assert second.engine.lookup(KEYS) == 0
    second.engine.close()


def test_a_config_file_does_what_its_document_does(tmp_path: Path) -> None:
    import json

    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(config(tmp_path / "nvme")))
    with OffloadEngine.open(file, {"model": "tiny"}) as engine:
        rig = EngineRig.__new__(EngineRig)
        from engine_rig import Device

        rig.device, rig.engine = Device(), engine
        engine.register_kv_caches(rig.device.tensors)
        rig.store(KEYS[:2])
        assert rig.load(KEYS[:2]) == tuple(KEYS[:2])


def test_a_bad_config_leaves_no_thread_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiers\[1\].capacity: .*too small for one chunk"):
        EngineRig(config(tmp_path / "nvme", pinned_chunks=1) | {"tiers": _shrunk(tmp_path)})


def _shrunk(tmp_path: Path) -> list[dict[str, object]]:
    tiers = config(tmp_path / "nvme")["tiers"]
    assert isinstance(tiers, list)
    return [tiers[0], tiers[1] | {"capacity": CHUNK_BYTES - 1}, tiers[2]]


def test_a_tier_that_cannot_start_closes_those_above_it(tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir(mode=0o755)
    (tmp_path / "nvme").chmod(0o755)
    (tmp_path / "nvme" / "stranger").write_text("not ours")
    with pytest.raises(Exception, match="nvme"):
        EngineRig(config(tmp_path / "nvme"))


def test_use_before_registration_and_after_close_is_refused(tmp_path: Path) -> None:
    engine = OffloadEngine.open(config(tmp_path / "nvme"))
    with pytest.raises(ValueError, match="register_kv_caches"):
        engine.lookup(KEYS)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError):
        engine.lookup(KEYS)


@pytest.mark.parametrize(
    ("keys", "blocks", "match"),
    [
        ([b"a", b"a"], [0, 1], "differ"),
        ([b""], [0], "a key is"),
        ([b"a"], [0, 1], "block"),
        ([b"a"], [BLOCKS], "block"),
        ([b"a"], [-1], "block"),
    ],
)
def test_a_wrong_job_is_refused_at_once(
    rig: EngineRig, keys: list[bytes], blocks: list[int], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        rig.engine.store(keys, blocks)
    rig.idle()


@pytest.mark.parametrize("keys", [[b"a", b"a"], [b""], [b"x" * 257], ["a"], b"ab"])
def test_a_lookup_refuses_the_keys_that_a_job_refuses(rig: EngineRig, keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="key"):
        rig.engine.lookup(keys)


def test_a_load_into_one_block_twice_is_refused_and_a_store_from_it_is_not(rig: EngineRig) -> None:
    with pytest.raises(ValueError, match="block 3 is listed twice"):
        rig.engine.load(KEYS[:2], [3, 3])
    assert rig.engine.store(KEYS[:2], [3, 3]).wait(10).succeeded == tuple(KEYS[:2])


def test_more_jobs_than_slots_at_once_all_succeed(rig: EngineRig) -> None:
    for block, key in enumerate(KEYS):
        rig.device.fill(block, key)
    stores = [rig.engine.store([key], [block]) for block, key in enumerate(KEYS)]
    assert not any(job.wait(10).failed for job in stores)
    rig.device.wipe()
    loads = [rig.engine.load([key], [block]) for block, key in enumerate(KEYS)]
    assert not any(job.wait(10).failed for job in loads)
    assert all(rig.device.holds(block, key) for block, key in enumerate(KEYS))
    rig.idle()


async def test_a_job_can_be_awaited_in_any_loop(rig: EngineRig) -> None:
    rig.device.fill(0, KEYS[0])
    stored = await rig.engine.store(KEYS[:1], [0])
    assert stored.succeeded == (KEYS[0],)
    await rig.engine.flushing()
    job = rig.engine.load(KEYS[:1], [1])
    assert (await job) == (await job)
    assert job.done()
    assert rig.device.holds(1, KEYS[0])


async def test_a_waiter_that_gives_up_does_not_stop_the_job(rig: EngineRig) -> None:
    job = rig.engine.store(KEYS[:8], range(8))

    async def wait() -> None:
        await job

    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert (await job).succeeded == tuple(KEYS[:8])


@pytest.mark.parametrize("turn", range(6))
def test_a_cancelled_job_holds_nothing(rig: EngineRig, turn: int) -> None:
    rig.store(KEYS[:16])
    rig.engine.flush(10)
    jobs: list[Job[Any]] = [rig.engine.load(KEYS[i : i + 8], range(8)) for i in range(0, 16, 8)]
    jobs += [rig.engine.store([b"new-%d-%d" % (turn, i)], [20 + i]) for i in range(4)]
    for job in jobs[turn % 3 :: 2]:
        job.cancel()
    for job in jobs:
        job.wait_ended()
    rig.idle()
    assert rig.load(KEYS[:16]) == tuple(KEYS[:16])


def test_several_threads_share_one_engine(rig: EngineRig) -> None:
    rig.store(KEYS[:16])
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(40):
                start = (seed * 5 + turn) % 12
                block = 16 + seed * 4
                result = rig.engine.load(KEYS[start : start + 4], range(block, block + 4)).wait(10)
                assert result.succeeded == tuple(KEYS[start : start + 4])
                for i in range(4):
                    assert rig.device.holds(block + i, KEYS[start + i])
                rig.engine.store([b"t%d-%d" % (seed, turn)], [block]).wait(10)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rig.idle()


def test_close_brings_down_what_was_stored(tmp_path: Path) -> None:
    document = config(tmp_path / "nvme", pinned_chunks=64)
    first = EngineRig(document)
    jobs = [first.engine.store([key], [block]) for block, key in enumerate(KEYS)]
    first.engine.close()
    assert all(job.done() for job in jobs)
    second = EngineRig(document)
    assert second.engine.lookup(KEYS) == len(KEYS)
    second.engine.close()


def test_removed_chunks_are_gone_from_every_tier_also_after_a_restart(tmp_path: Path) -> None:
    rig = EngineRig(config(tmp_path))
    rig.store([b"a", b"b", b"c"])
    rig.engine.flush(10)
    rig.engine.remove([b"a", b"c"]).wait(10)
    assert [rig.engine.lookup([key]) for key in (b"a", b"b", b"c")] == [0, 1, 0]
    assert rig.load([b"a", b"b", b"c"]) == (b"b",)
    rig.idle()
    rig.engine.close()
    rig = EngineRig(config(tmp_path))
    assert [rig.engine.lookup([key]) for key in (b"a", b"b", b"c")] == [0, 1, 0]
    rig.engine.close()


def test_hits_are_counted_by_the_tier_that_had_them(rig: EngineRig) -> None:
    rig.store(KEYS[:20])  # of which the pinned tier holds 8
    rig.engine.flush(10)
    sources = rig.engine.load(KEYS[:21], range(21)).wait(10).sources
    tiers = rig.engine.stats().tiers
    told = {name: list(sources.values()).count(name) for name in tiers}
    assert {name: tier.counters["hits"] for name, tier in tiers.items()} == told
    assert sum(told.values()) == 20
    assert told["nvme"] > 0
    assert tiers["pinned"].counters["misses"] == 1
