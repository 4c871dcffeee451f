"""A tier of another package for a soak: a file a chunk in a folder, shared by processes; it may misbehave.

It knows nothing of namespaces, and in bad weather it is slow, hangs, raises, answers nonsense or drops what
it should keep. It never lies about bytes: what it says it has stored is there, whole, also after a kill.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field
from soak_weather import SLOW_S, Weather

from kvtier.factory.base import TierConfig, TierContext
from kvtier.tiers.base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from kvtier.tiers.settled import settled

FILES_MAX = 400  # in the folder of a tier that evicts

WEATHER: list[Weather] = []  # of this process; the newest one is in force


class Folder:
    """Chunks as files of one folder. It answers lookups from an old listing, as remote tiers do."""

    name = "folder"

    def __init__(self, path: Path, weather: Weather, *, evicts: bool) -> None:
        self._path, self._weather, self._evicts = path, weather, evicts
        self._random = random.Random(str(path))
        self._lock = threading.Lock()
        self._known: set[ChunkKey] = set()
        self._reports: list[Callable[[Sequence[ChunkKey], RemoveReason], None]] = []
        self._closed = False
        path.mkdir(parents=True, exist_ok=True)
        self._list()

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        mood = self._mood()
        if mood == "raises":
            raise OSError("no route to host")
        if mood == "nonsense":
            return []
        if mood == "asks":
            return [None] * len(keys)
        with self._lock:
            return [not self._closed and key in self._known for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self._closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        failed = await settled(asyncio.ensure_future(asyncio.to_thread(self._store, keys, buffers)))
        return Outcome.of(keys, failed)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self._closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        failed = await settled(asyncio.ensure_future(asyncio.to_thread(self._load, keys, buffers)))
        return Outcome.of(keys, failed)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        if not self._closed:
            await settled(asyncio.ensure_future(asyncio.to_thread(self._remove, keys)))

    async def flush(self) -> None:
        self._misbehave()

    def stats(self) -> TierStats:
        if self._mood() == "raises":
            raise RuntimeError("no numbers today")
        with self._lock:
            return TierStats(len(self._known), 0, 0)

    def watch(self, report: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        self._reports.append(report)

    async def close(self) -> None:
        self._closed = True

    # --- on threads ---------------------------------------------------------------------------------

    def _store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> dict[ChunkKey, Failure]:
        failed = {}
        for key, buffer in zip(keys, buffers, strict=True):
            if self._misbehave() == "drops":
                failed[key] = Failure.IO_ERROR
                continue
            draft = self._path / f"{os.getpid()}-{threading.get_ident()}.new"
            draft.write_bytes(buffer)
            draft.rename(self._file(key))
            with self._lock:
                self._known.add(key)
        if self._evicts:
            self._make_room()
        return failed

    def _load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> dict[ChunkKey, Failure]:
        failed = {}
        for key, buffer in zip(keys, buffers, strict=True):
            if self._misbehave() == "drops":
                buffer[: len(buffer) // 2] = bytes(len(buffer) // 2)  # it broke off in the middle
                failed[key] = Failure.IO_ERROR
                continue
            try:
                buffer[:] = self._file(key).read_bytes()
            except FileNotFoundError:
                failed[key] = Failure.MISSING
                with self._lock:
                    self._known.discard(key)
        return failed

    def _remove(self, keys: Sequence[ChunkKey]) -> None:
        self._misbehave()
        for key in keys:
            self._file(key).unlink(missing_ok=True)
        with self._lock:
            self._known.difference_update(keys)

    def _make_room(self) -> None:
        with self._lock:
            gone = self._random.sample(sorted(self._known), max(0, len(self._known) - FILES_MAX))
            self._known.difference_update(gone)
        for key in gone:
            self._file(key).unlink(missing_ok=True)
        for report in self._reports:
            report(gone, RemoveReason.EVICTED)

    def _misbehave(self) -> str:
        """Be slow, hang or raise, as the weather has it; returns the mood that is left."""
        mood = self._mood()
        if mood == "raises":
            raise ConnectionError("reset by peer")
        if mood == "slow":
            self._weather.calm.wait(SLOW_S)
        elif mood == "hangs":
            self._weather.hang()
        return mood

    def _mood(self) -> str:
        """What it does in this weather: most of the time its work, whatever the drive has."""
        fault = self._weather.now()
        if fault is None or self._weather.position(4):
            return ""
        moods = ("raises", "nonsense", "asks", "slow", "hangs", "drops")
        return moods[zlib.crc32(fault.name.encode()) % len(moods)]

    def _list(self) -> None:
        with self._lock:
            self._known.update(
                bytes.fromhex(file.stem) for file in self._path.iterdir() if file.suffix == ".chunk"
            )

    def _file(self, key: ChunkKey) -> Path:
        return self._path / f"{key.hex()}.chunk"


class FolderConfig(TierConfig):
    path: str = Field(description="The folder.", examples=["/tmp/folder"])
    evicts: bool = Field(description="Whether it keeps only so many chunks.", examples=[False])
    load_deadline_s: float = Field(default=1.0, description="As of the nvme tier.", examples=[1.0])


class FolderFactory:
    Config = FolderConfig

    @staticmethod
    async def open(config: FolderConfig, context: TierContext) -> Folder:
        return Folder(Path(config.path), WEATHER[-1], evicts=config.evicts)
