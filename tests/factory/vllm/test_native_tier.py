"""kvtier's NVMe tier in the hands of vLLM's tiering, whose rows the test owns; no server runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
from standin_servers import BLOCK_BYTES, BLOCK_TOKENS, offloading_config
from vllm.v1.kv_offload.base import Locality, Medium, TierFilter, TierMatcher
from vllm.v1.kv_offload.tiering.base import TransferJob

from kvtier.factory.vllm import metrics, native
from kvtier.factory.vllm.native import KvtierNvmeTier

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

ROWS = 4
CAPACITY_BYTES = 64 << 20
KEYS = [b"key-%d----" % number for number in range(ROWS)]


class Tiering:
    """What vLLM's scheduler does with a secondary tier."""

    def __init__(self, directory: Path, *, has_events: bool) -> None:
        config = offloading_config({}, directory)
        config.enable_kv_cache_events = has_events
        self.memory = bytearray(b"".join(bytes([row + 1]) * BLOCK_BYTES for row in range(ROWS)))
        self.tier = KvtierNvmeTier(
            offloading_spec=SimpleNamespace(config=config),
            primary_kv_view=memoryview(self.memory).cast("B", (ROWS, BLOCK_BYTES)),
            tier_type="KvtierNvmeTier",
            path=str(directory / "nvme"),
            capacity=CAPACITY_BYTES,
            reserve=0,
        )
        self._jobs = itertools.count()

    def store(self, keys: Sequence[bytes]) -> Any:
        return self._run(self.tier.submit_store, keys, is_promotion=False)

    def load(self, keys: Sequence[bytes]) -> Any:
        return self._run(self.tier.submit_load, keys, is_promotion=True)

    def events(self) -> list[tuple[list[bytes], bool]]:
        """The keys of each event, and whether they were removed."""
        events = list(self.tier.take_events())
        assert {event.medium for event in events} <= {Medium.STORAGE}
        assert {getattr(event, "ownership", "nvme") for event in events} <= {"nvme"}  # from 0.29 on
        return [(list(event.keys), event.removed) for event in events]

    def _run(
        self, submit: Callable[[TransferJob], None], keys: Sequence[bytes], *, is_promotion: bool
    ) -> Any:
        submit(
            TransferJob(
                job_id=next(self._jobs),
                keys=keys,
                **{native._ROWS: np.arange(len(keys))},
                is_promotion=is_promotion,
                req_context=None,
            )
        )
        self.tier.drain_jobs()
        (result,) = self.tier.get_finished_jobs()
        return result


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Tiering]]:
    (tmp_path / "config.json").write_text("{}")
    started: list[Tiering] = []

    def begin(*, has_events: bool = True) -> Tiering:
        started.append(Tiering(tmp_path, has_events=has_events))
        return started[-1]

    yield begin
    for tiering in started:
        tiering.tier.shutdown()


def damage(directory: Path) -> None:
    """Overwrite every stored byte of a row."""
    for path in (directory / "nvme" / "segments").iterdir():
        data = path.read_bytes()
        for row in range(ROWS):
            data = data.replace(bytes([row + 1]) * BLOCK_BYTES, bytes([0xEE]) * BLOCK_BYTES)
        with path.open("r+b") as file:
            file.write(data)


def test_what_was_stored_comes_back_into_the_rows(start: Callable[..., Tiering]) -> None:
    tiering = start()
    before = bytes(tiering.memory)
    assert tiering.store(KEYS).success
    tiering.memory[:] = bytes(len(before))
    assert tiering.load(KEYS).success
    assert bytes(tiering.memory) == before


def test_stores_and_corrupt_chunks_are_told_as_events(start: Callable[..., Tiering], tmp_path: Path) -> None:
    tiering = start()
    tiering.store(KEYS)
    assert tiering.events() == [(KEYS, False)]
    tiering.load(KEYS)
    assert tiering.events() == []
    damage(tmp_path)
    assert not tiering.load(KEYS).success
    ((gone, removed),) = tiering.events()
    assert (sorted(gone), removed) == (KEYS, True)


def test_evictions_are_told_as_events(start: Callable[..., Tiering]) -> None:
    tiering = start()
    told: Counter[bool] = Counter()
    number = 0
    while not told[True] and number * BLOCK_BYTES < 2 * CAPACITY_BYTES:
        keys = [b"filler-%07d" % (number + row) for row in range(ROWS)]
        number += ROWS
        assert tiering.store(keys).success
        for gone, removed in tiering.events():
            told[removed] += len(gone)
    assert 0 < told[True] < told[False] == number


def test_a_server_that_publishes_no_events_gets_none(start: Callable[..., Tiering]) -> None:
    tiering = start(has_events=False)
    tiering.store(KEYS)
    assert tiering.events() == []


def test_the_time_of_transfers_is_reported_in_both_directions(
    start: Callable[..., Tiering], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "INTERVAL_S", 3600.0)  # then the test looks, and nobody else
    tiering = start()
    tiering.store(KEYS)
    tiering.load(KEYS)
    assert tiering.tier.get_stats() is None
    tiering.tier._reporter.look()
    report = tiering.tier.get_stats()
    assert report is not None
    values = report.data["data"]
    for direction in ("load", "store"):
        assert values[f"kvtier:{direction}_bytes"]["nvme",] == ROWS * BLOCK_BYTES
        assert values[f"kvtier:{direction}_seconds"]["nvme",] > 0


def test_random_block_hashes_are_said_at_start(
    start: Callable[..., Tiering], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.core import kv_cache_utils

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.delattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", raising=False)
    start()
    assert "PYTHONHASHSEED" in caplog.text


def test_the_tier_is_storage_of_this_machine_to_a_request_that_chooses(start: Callable[..., Tiering]) -> None:
    tier = start().tier
    asked = TierMatcher(Medium.STORAGE, Locality.REMOTE)
    assert not TierFilter((asked,)).allows(tier.medium, tier.locality)
    assert TierFilter((TierMatcher(locality=Locality.LOCAL),)).allows(tier.medium, tier.locality)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_vllm_does_not_have_is_never_stored(start: Callable[..., Tiering], row: int) -> None:
    tiering = start()
    rows = {native._ROWS: np.array([row])}
    job = TransferJob(job_id=1, keys=KEYS[:1], **rows, is_promotion=False, req_context=None)
    with pytest.raises(AssertionError, match="rows of its own view"):
        tiering.tier.submit_store(job)
    assert not tiering.tier.has_pending_work()


def test_the_facts_of_the_tier_have_the_labels_that_it_declares(start: Callable[..., Tiering]) -> None:
    info = start().tier.config_info()
    assert tuple(info) == KvtierNvmeTier.config_info_keys({})
    assert "tier" not in info, "vLLM adds it"
    assert info["capacity_tokens"] == CAPACITY_BYTES // BLOCK_BYTES * BLOCK_TOKENS
