"""What a scrape of an engine gets."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from engine_rig import EngineRig, config
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvtier.engine.metrics import EngineCollector
from kvtier.engine.metrics.names import METRICS, Kind

KEYS = [b"a", b"b"]
NOT_AT_REST = {  # known only once measured, or only of tiers that the document below does not have
    "kvtier:load_bytes_per_second",
    "kvtier:prefill_tokens_per_second",
    "kvtier:years_left",
    "kvtier:dropped_events",
    "kvtier:not_admitted_chunks",
    "kvtier:drives_out",
    "kvtier:drive_used_bytes",
    "kvtier:drive_io_errors",
    "kvtier:drive_breaker_openings",
    "kvtier:drive_breaker_state",
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[EngineRig]:
    rig = EngineRig(config(tmp_path))
    yield rig
    rig.engine.close()


def registered(rig: EngineRig) -> CollectorRegistry:
    registry = CollectorRegistry()
    EngineCollector(rig.engine).register(registry)
    return registry


def scraped(registry: CollectorRegistry) -> dict[str, Any]:
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_series_is_there_before_anything_happens(rig: EngineRig) -> None:
    families = scraped(registered(rig))
    assert {metric.name for metric in METRICS} - families.keys() == NOT_AT_REST
    assert families.keys() <= {metric.name for metric in METRICS}
    for metric in METRICS:
        if metric.kind is not Kind.GAUGE and metric.name in families:
            assert {sample.value for sample in families[metric.name].samples} == {0}


def test_a_scrape_says_what_the_engine_did(rig: EngineRig) -> None:
    registry = registered(rig)
    rig.store(KEYS)
    rig.engine.flush(10)
    rig.load([*KEYS, b"absent"])
    assert registry.get_sample_value("kvtier:lookup_hits_total", {"tier": "pinned"}) == 2
    assert registry.get_sample_value("kvtier:lookup_misses_total") == 1
    stored = {"tier": "nvme"}
    calls = registry.get_sample_value("kvtier:store_duration_seconds_count", stored)
    assert calls is not None
    assert 1 <= calls <= 2, "one a batch"
    assert (
        registry.get_sample_value("kvtier:store_duration_seconds_bucket", {**stored, "le": "+Inf"}) == calls
    )
    seconds = registry.get_sample_value("kvtier:store_seconds_total", stored)
    assert registry.get_sample_value("kvtier:store_duration_seconds_sum", stored) == pytest.approx(
        seconds, abs=1e-5
    )


def test_a_registry_takes_one_engine_and_each_engine_may_have_its_own(tmp_path: Path, rig: EngineRig) -> None:
    other = EngineRig(config(tmp_path / "other"))
    registry = registered(rig)
    with pytest.raises(ValueError, match="kvtier:lookup_hits"):
        EngineCollector(other.engine).register(registry)
    rig.store(KEYS)
    assert registered(other).get_sample_value("kvtier:store_chunks_total", {"tier": "pinned"}) == 0
    other.engine.close()


def test_an_engine_that_has_not_started_or_is_closed_has_no_metrics(tmp_path: Path) -> None:
    rig = EngineRig(config(tmp_path), register=False)
    registry = registered(rig)
    assert scraped(registry) == {}
    rig.engine.register_kv_caches(rig.device.tensors)
    assert "kvtier:used_bytes" in scraped(registry)
    rig.engine.close()
    assert scraped(registry) == {}


def test_a_scrape_may_meet_the_close(rig: EngineRig) -> None:
    registry, started = registered(rig), threading.Event()

    def scrape() -> None:
        for _ in range(50):
            generate_latest(registry)
            started.set()

    scraping = threading.Thread(target=scrape)
    scraping.start()
    started.wait(10)
    rig.engine.close()
    scraping.join(30)
    assert not scraping.is_alive()


def test_without_prometheus_client_its_name_is_told_and_the_table_is_there() -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from kvtier.engine.metrics.names import METRICS\n"
        "try:\n    from kvtier.engine.metrics import EngineCollector\n"
        "except ImportError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "kvtier-core[metrics]" in told.stdout
