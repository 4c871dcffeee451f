"""kvtier's NVMe tier as a `Store`: of whichever revision is importable, with syncs that can be slowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvtier.engine.loop import LoopThread

from .base import Request
from .cases import GIB
from .memory import Memory

CAPACITY_BYTES = 64 * GIB  # as in a server; it sets how large segments are, and nothing is near it

Sync = Callable[..., None]  # runs the sync that it is given, with its arguments

# Where modules lie below `kvtier.tiers`: in its folders, or in a revision from before there were any.
IN_FOLDERS = {
    "files": "nvme.io.files",
    "budget": "nvme.log.budget",
    "namespaces": "nvme.store.namespaces",
    "tier": "nvme.tier",
}
FLAT = {"files": "files", "budget": "budget", "namespaces": "identity", "tier": "nvme"}


class KvtierRequest:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self) -> None:
        failed = self._future.result().failed
        if failed:
            raise RuntimeError(f"kvtier: {len(failed)} chunks failed: {set(failed.values())}")


class Kvtier:
    """The tier, checksums on, on an event loop in a thread as in a server."""

    name = "kvtier"

    def __init__(self, path: Path, memory: Memory, sync: Sync, segment_bytes: int | None) -> None:
        self._path, self._memory = path, memory
        self._loop = LoopThread()
        parts = _parts()
        with _segments_of(parts.budget, segment_bytes):
            opening = parts.tier.NvmeTier.open(
                path,
                capacity_bytes=CAPACITY_BYTES,
                reserve_bytes=0,
                identity=parts.namespaces.Identity({"model": "benchmark"}),
                chunk_bytes=memory.row_bytes,
                files=with_syncs(parts.files.Files, sync),
            )
            self.tier = self._opened(self._loop.submit(opening))
        assert segment_bytes in (None, self.segment_bytes), "the store has the segments that were asked for"

    def _opened(self, opening: Future[Any]) -> Any:
        """The tier; closed again where the wait for it is interrupted."""
        try:
            return opening.result()
        except KeyboardInterrupt:
            self.tier = opening.result()
            self.close()
            raise

    @property
    def segment_bytes(self) -> int:
        return int(json.loads((self._path / "kvtier.json").read_text())["segment_bytes"])

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return KvtierRequest(self._loop.submit(self._store(keys, [self._memory.row(row) for row in rows])))

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request:
        return KvtierRequest(self._loop.submit(self.tier.load(keys, [self._memory.row(row) for row in rows])))

    def flush(self) -> None:
        self._loop.submit(self.tier.flush()).result()

    def close(self) -> None:
        self._loop.submit(self.tier.close()).result()
        self._loop.close()

    async def _store(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> Any:
        return await self.tier.store(keys, buffers)


def with_syncs(layer: type[Any], sync: Sync) -> Any:
    """A file layer of that class, each of whose methods that syncs is run by `sync`.

    A store syncs its small files, too, when it is opened and closed: those stay as they are.
    """
    methods = {name: _through(sync, getattr(layer, name)) for name in dir(layer) if name.startswith("sync_")}
    return type("FilesWithSyncs", (layer,), methods)()


def _through(sync: Sync, method: Callable[..., None]) -> Callable[..., None]:
    return lambda files, *arguments: sync(method, files, *arguments)


def _segments_of(budget: Any, segment_bytes: int | None) -> Any:
    """Have new stores get segments of that size, whatever their cap."""
    if segment_bytes is None:
        return nullcontext()
    return mock.patch.object(budget, "segment_bytes_for", return_value=segment_bytes)


def _parts() -> SimpleNamespace:
    """The modules of kvtier that are needed here, from where the importable revision keeps them."""
    nvme = import_module("kvtier.tiers.nvme")
    places = IN_FOLDERS if hasattr(nvme, "__path__") else FLAT
    return SimpleNamespace(**{name: import_module(f"kvtier.tiers.{place}") for name, place in places.items()})
