"""kvtier's store with its syncs slowed or skipped, and with segments of a given size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

kvtier_store = pytest.importorskip(
    "comparison.kvtier_store", reason="the benchmark is not part of the package"
)

from comparison.cases import request  # noqa: E402 - once it is known to be there
from comparison.memory import Memory, Pages, random_file  # noqa: E402
from comparison.syncs import Syncs, skip  # noqa: E402

MIB = 1024 * 1024
REQUESTS, CHUNKS, CHUNK_BYTES = 6, 4, 256 * 1024


@pytest.fixture
def memory_fd() -> Iterator[int]:
    with random_file(REQUESTS * CHUNKS * CHUNK_BYTES) as fd:
        yield fd


@contextmanager
def opened(path: Path, memory_fd: int, sync: Any, segment_bytes: int | None) -> Iterator[Any]:
    memory = Memory(Pages(memory_fd), REQUESTS * CHUNKS, CHUNK_BYTES)
    store = kvtier_store.Kvtier(path, memory, sync, segment_bytes)
    try:
        yield store
    finally:
        store.close()


def store_some(store: Any) -> None:
    """Enough for more than two segments of 2 MiB."""
    for number in range(REQUESTS):
        store.store(*request(number, CHUNKS, b"")).result()


@contextmanager
def counted_syncs() -> Iterator[list[str]]:
    """The kernel's syncs of this process; each is done, too."""
    called: list[str] = []

    def counting(name: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def counted(fd: int) -> None:
            called.append(name)
            call(fd)

        return counted

    with ExitStack() as patches:
        for name in ("fsync", "fdatasync"):
            patches.enter_context(mock.patch.object(os, name, counting(name, getattr(os, name))))
        yield called


def test_no_sync_of_the_kernel_is_left_where_they_are_skipped(tmp_path: Path, memory_fd: int) -> None:
    with opened(tmp_path / "store", memory_fd, skip, 2 * MIB) as store:
        with counted_syncs() as called:
            store_some(store)
            store.flush()
        assert called == []


def test_every_sync_of_the_kernel_is_counted_and_takes_longer(tmp_path: Path, memory_fd: int) -> None:
    syncs = Syncs(0.02)
    with opened(tmp_path / "store", memory_fd, syncs.run, 2 * MIB) as store:
        with counted_syncs() as called:
            syncs.clear()
            store_some(store)
            store.flush()
    assert len(syncs.took_s) >= len(called) > 0, "none is beside them"
    assert min(syncs.took_s) >= 0.02


@pytest.mark.parametrize("segment_mib", [1, 2, 300])
def test_segments_have_the_size_that_was_asked_for(tmp_path: Path, memory_fd: int, segment_mib: int) -> None:
    with opened(tmp_path / "store", memory_fd, skip, segment_mib * MIB) as store:
        store_some(store)
        assert store.segment_bytes == segment_mib * MIB
        (first, *_) = sorted((tmp_path / "store" / "segments").iterdir())
        assert first.stat().st_size == segment_mib * MIB


def test_without_a_wish_the_cap_gives_the_segments_their_size(tmp_path: Path, memory_fd: int) -> None:
    with opened(tmp_path / "store", memory_fd, skip, None) as store:
        assert store.segment_bytes > 2 * MIB
