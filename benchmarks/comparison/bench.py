"""What one system does for the benchmark, in its own process: a new store for each task, gone at its end."""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cases import Case, Sample, request, timed
from .drive import come_to_rest, drop_page_cache_of, sync_file_system
from .memory import Memory, Pages
from .syncs import Syncs, skip
from .systems import System


@dataclass(frozen=True, slots=True)
class Opened:
    store: Any
    path: Path
    memory: Memory
    syncs: Syncs


class Bench:
    """Runs cases for one system in directories below `root`."""

    def __init__(self, system: System, root: Path, pages: Pages) -> None:
        self._system, self._root, self._pages = system, root, pages

    def run_pair(self, storing: Case) -> dict[str, Sample]:
        """Store and load the requests of a case, beginning with an empty directory."""
        loading = replace(storing, direction="load")
        with self._opened(storing) as opened:
            stored = self._stored(storing, opened)
            drop_page_cache_of(opened.path)
            opened.memory.forget()
            loaded = timed(loading, opened.store.load, at_rest=come_to_rest(self._root))
            opened.memory.check()
        return {storing.name: stored, loading.name: loaded}

    def flush_cost(self, storing: Case) -> dict[str, float]:
        """What making each request durable costs beside storing it, in milliseconds; medians."""
        stores_s, flushes_s = [], []
        with self._opened(storing) as opened:
            for number in range(storing.requests):
                began_s = time.perf_counter()
                opened.store.store(*request(number, storing.request_chunks, b"")).result()
                stored_s = time.perf_counter()
                self._make_durable(opened)
                stores_s.append(stored_s - began_s)
                flushes_s.append(time.perf_counter() - stored_s)
        return {
            "chunk_bytes": storing.chunk_bytes,
            "store_ms": 1000 * statistics.median(stores_s),
            "flush_ms": 1000 * statistics.median(flushes_s),
        }

    @contextmanager
    def _opened(self, storing: Case) -> Iterator[Opened]:
        """A new store that has served one request, so that what is made once is there."""
        memory = Memory(self._pages, storing.chunks, storing.chunk_bytes)
        path = Path(tempfile.mkdtemp(prefix=f"{self._system.name}-", dir=self._root))
        syncs = Syncs(self._system.sync_delay_s)
        try:
            store = new_store(self._system, path / "store", memory, syncs)
            try:
                store.store(*request(0, storing.request_chunks, b"warm")).result()
                _settle_heap()
                yield Opened(store, path, memory, syncs)
            finally:
                gc.unfreeze()
                store.close()
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _stored(self, storing: Case, opened: Opened) -> Sample:
        at_rest = come_to_rest(self._root)
        opened.syncs.clear()
        sample = timed(storing, opened.store.store, at_rest=at_rest)
        syncs_s = list(opened.syncs.took_s)
        began_s = time.perf_counter()
        self._make_durable(opened)
        return replace(sample, durable_s=time.perf_counter() - began_s, syncs_s=syncs_s)

    def _make_durable(self, opened: Opened) -> None:
        """kvtier flushes. For those without such a call the file system is synced: one sync for all files."""
        if self._system.kind == "kvtier":
            opened.store.flush()
        if not self._system.syncs_itself:
            opened.syncs.run(sync_file_system, opened.path)


def new_store(system: System, path: Path, memory: Memory, syncs: Syncs) -> Any:
    """A store of that system at `path`. Each is imported where it is used: not all are installed."""
    if system.kind == "kvtier":
        from .kvtier_store import Kvtier

        run = skip if system.skips_syncs else syncs.run
        return Kvtier(path, memory, run, system.segment_bytes)
    if system.kind == "lmcache":
        from .lmcache_store import LmcacheDisk

        return LmcacheDisk(path, memory)
    from .vllm_store import VllmFs

    return VllmFs(path, memory)


def _settle_heap() -> None:
    """As vLLM does once it is up: a collector that walks all its modules would be measured otherwise."""
    gc.collect()
    gc.freeze()
