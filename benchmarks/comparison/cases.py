"""The cases that every system is measured in, and the clock around their requests."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .memory import MIB

KIB = 1024
GIB = 1 << 30
REQUEST_CHUNKS = 64
AT_ONCE = 16
REQUESTS_MAX = 256
DIRECTORIES = 16  # as in a store that has been in use; the first request makes them
CASE_BYTES = 1024 * MIB  # some segments of 256 MiB; exceeded where the requests at once are more


@dataclass(frozen=True, slots=True)
class Case:
    chunk_bytes: int
    direction: str  # "store" or "load"
    at_once: int
    aim_bytes: int = CASE_BYTES
    request_chunks: int = REQUEST_CHUNKS

    @property
    def name(self) -> str:
        return f"{self.direction}_{'one' if self.at_once == 1 else 'many'}"

    @property
    def requests(self) -> int:
        """A whole number of times that so many are under way at once."""
        fitting = min(REQUESTS_MAX, self.aim_bytes // (self.request_chunks * self.chunk_bytes))
        return max(1, fitting // self.at_once) * self.at_once

    @property
    def chunks(self) -> int:
        return self.requests * self.request_chunks

    @property
    def total_bytes(self) -> int:
        return self.chunks * self.chunk_bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One system's share of one run of one case.

    Attributes:
        at_rest: whether the drive had come to rest when it began.
        durable_s: what making it all durable took, after the last request; None for loads.
        syncs_s: what each sync took that ended before that, of the store itself; None for loads.
    """

    total_bytes: int
    took_s: float
    cpu_s: float
    latencies_s: list[float]
    at_rest: bool
    durable_s: float | None = None
    syncs_s: list[float] | None = None

    @property
    def bytes_per_s(self) -> float:
        return self.total_bytes / self.took_s

    @property
    def durable_bytes_per_s(self) -> float | None:
        """The rate with what makes it all durable in the time."""
        return None if self.durable_s is None else self.total_bytes / (self.took_s + self.durable_s)

    @property
    def cpu_s_per_gib(self) -> float:
        return self.cpu_s / (self.total_bytes / GIB)


def timed(case: Case, submit: Callable[..., Any], *, at_rest: bool) -> Sample:
    """Send the case's requests, `at_once` at a time."""
    cpu_s, began_s = _cpu_s(), time.perf_counter()
    latencies: list[float] = []
    for first in range(0, case.requests, case.at_once):
        sent_s = time.perf_counter()
        numbers = range(first, min(first + case.at_once, case.requests))
        under_way = [submit(*request(number, case.request_chunks, b"")) for number in numbers]
        for job in under_way:
            job.result()
            latencies.append(time.perf_counter() - sent_s)
    took_s = time.perf_counter() - began_s
    return Sample(case.total_bytes, took_s, _cpu_s() - cpu_s, latencies, at_rest)


def request(number: int, chunks: int, prefix: bytes) -> tuple[list[bytes], list[int]]:
    """The keys and the rows of one request."""
    rows = list(range(number * chunks, (number + 1) * chunks))
    return [_key(prefix + b"%d" % row) for row in rows], rows


def _key(name: bytes) -> bytes:
    """Like a server's block hash, but that a store which makes directories by hash has them all already."""
    digest = hashlib.sha256(name).digest()
    return bytes((digest[0] % DIRECTORIES, 0, 0)) + digest[3:]


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
