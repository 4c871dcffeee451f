"""How the benchmark sums up; its runs are for `make bench-nvme`."""

from __future__ import annotations

import pytest

nvme = pytest.importorskip("nvme", reason="the benchmark is not part of the package")

SAMPLES = {
    ("store_one", 65536, "kvtier"): [nvme.Sample(rate, 0.5, [0.001]) for rate in (300.0, 100.0, 200.0)],
    ("store_one", 65536, "vllm_fs"): [nvme.Sample(50.0, 2.0, [0.004])],
}


def test_ratios_are_of_medians_and_say_what_they_compare() -> None:
    result = nvme.summarised({"samples": SAMPLES, "limits": {("store_one", 65536): [400.0]}})
    assert result["ratios"] == [
        {"case": "store_one", "chunk_bytes": 65536, "peer": "vllm_fs", "ratio": 4.0},
        {"case": "store_one", "chunk_bytes": 65536, "peer": "fio", "ratio": 0.5},
    ]
    assert result["cpu"] == [{"case": "store_one", "chunk_bytes": 65536, "peer": "vllm_fs", "ratio": 0.25}]


@pytest.mark.parametrize("at_once", [1, nvme.AT_ONCE])
@pytest.mark.parametrize("chunk_bytes", nvme.CHUNK_SIZES)
def test_a_run_is_bounded(chunk_bytes: int, at_once: int) -> None:
    case = nvme.Case(chunk_bytes, "store", at_once)
    assert case.requests >= 2
    assert case.total_bytes <= max(nvme.CASE_BYTES_MAX, 2 * nvme.REQUEST_CHUNKS * chunk_bytes)


def test_keys_of_different_requests_differ() -> None:
    keys = [key for prefix in (b"", b"warm") for i in range(4) for key in nvme._request(i, prefix)[0]]
    assert len(set(keys)) == len(keys)
