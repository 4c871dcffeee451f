"""How large cases are, and what their requests ask for."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

cases = pytest.importorskip("comparison.cases", reason="the benchmark is not part of the package")

KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize("at_once", [1, cases.AT_ONCE])
@pytest.mark.parametrize("chunk_bytes", [64 * KIB, 256 * KIB, MIB, 2 * MIB])
def test_a_case_is_bounded_and_has_all_its_requests_at_once(chunk_bytes: int, at_once: int) -> None:
    case = cases.Case(chunk_bytes, "store", at_once)
    assert case.requests % at_once == 0
    assert 0 < case.total_bytes <= max(cases.CASE_BYTES, at_once * cases.REQUEST_CHUNKS * chunk_bytes)


def test_keys_of_different_requests_differ() -> None:
    keys = [key for prefix in (b"", b"warm") for i in range(4) for key in cases.request(i, 64, prefix)[0]]
    assert len(set(keys)) == len(keys)


def test_every_row_is_asked_for_once_and_every_request_has_its_latency() -> None:
    asked: list[int] = []

    def submit(keys: list[bytes], rows: list[int]) -> Future[None]:
        asked.extend(rows)
        job: Future[None] = Future()
        job.set_result(None)
        return job

    case = cases.Case(4 * KIB, "store", 4, aim_bytes=32 * 4 * KIB, request_chunks=4)
    sample = cases.timed(case, submit, at_rest=True)
    assert asked == list(range(32))
    assert len(sample.latencies_s) == 8
    assert sample.total_bytes == 32 * 4 * KIB


def test_the_durable_rate_has_the_last_sync_in_its_time() -> None:
    sample = cases.Sample(300, 2.0, 0.1, [1.0], at_rest=True, durable_s=1.0)
    assert (sample.bytes_per_s, sample.durable_bytes_per_s) == (150, 100)
    assert cases.Sample(300, 2.0, 0.1, [1.0], at_rest=True).durable_bytes_per_s is None
