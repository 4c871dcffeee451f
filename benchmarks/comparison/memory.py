"""The memory that chunks are stored from and loaded into: the same pages for every store."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

MIB = 1 << 20
RANDOM_BYTES = 16 * MIB  # repeated; no drive finds that far apart repetitions
PAGE_BYTES = 4096


@contextmanager
def random_file(size_bytes: int) -> Iterator[int]:
    """A file in memory, full of random bytes, which the processes of all stores map as an arena is mapped."""
    fd = os.memfd_create("kvtier-benchmark")
    try:
        random = np.random.default_rng(0).bytes(RANDOM_BYTES)
        for start in range(0, size_bytes, RANDOM_BYTES):
            os.pwrite(fd, random[: size_bytes - start], start)
        yield fd
    finally:
        os.close(fd)


class Pages:
    """A file in memory, mapped whole, each page touched: no store pays for a first touch."""

    def __init__(self, fd: int) -> None:
        self.view = memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
        np.frombuffer(self.view, np.uint8)[::PAGE_BYTES].sum()


class Memory:
    """Rows of pages, one for each chunk, as slots are. The first bytes of each tell them apart."""

    def __init__(self, pages: Pages, rows: int, row_bytes: int) -> None:
        assert rows * row_bytes <= len(pages.view), "a case fits into the memory"
        self.row_bytes = row_bytes
        self._rows_count = rows
        self._view = pages.view[: rows * row_bytes]
        self._marks()[:] = np.arange(1, rows + 1)

    def row(self, index: int) -> memoryview:
        return self._view[index * self.row_bytes : (index + 1) * self.row_bytes]

    def table(self) -> memoryview:
        """All rows as a two-dimensional view."""
        return self._view.cast("B", (self._rows_count, self.row_bytes))

    def forget(self) -> None:
        self._marks()[:] = 0

    def check(self) -> None:
        """Whether every row has been filled with its own chunk since it was forgotten."""
        assert (self._marks() == np.arange(1, self._rows_count + 1)).all(), "each row has its own chunk again"

    def _marks(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.frombuffer(self._view, np.int64).reshape(self._rows_count, -1)[:, 0]
