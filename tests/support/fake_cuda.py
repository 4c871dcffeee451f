"""torch.cuda and the driver's copies, without a device: streams whose work runs when the test lets it.

Streams are queues. Work that was put on one runs in order, and a wait for an event holds it up until all that
the event had captured when the wait was submitted has run. Events complete as soon as they are reached. The
copies are real: host memory plays the device.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

DEVICE = torch.device("cuda", 0)


class Entry(NamedTuple):
    """One entry of a stream.

    Attributes:
        ready: whether it can run yet.
        is_work: whether it waits for the test to let it run.
    """

    run: Callable[[], object]
    ready: Callable[[], bool]
    is_work: bool


def at_once() -> bool:
    return True


class FakeStream:
    """A queue of entries."""

    def __init__(self, cuda: FakeCuda, name: str, priority: int) -> None:
        self.cuda = cuda
        self.name = name
        self.priority = priority
        self.cuda_stream = 0x1000 + len(cuda.streams)
        self.entries: deque[Entry] = deque()
        cuda.streams.append(self)

    def put(
        self, run: Callable[[], object], ready: Callable[[], bool] = at_once, *, is_work: bool = True
    ) -> None:
        self.entries.append(Entry(run, ready, is_work))
        self.cuda.settle()

    def step(self) -> bool:
        """Run the oldest piece of work; say whether there was one that could run."""
        if not self.entries or not self.entries[0].is_work:
            return False
        self.entries.popleft().run()
        self.cuda.settle()
        return True

    def settle(self) -> bool:
        """Run the oldest entry if it is no work; say whether that was so."""
        if not self.entries or self.entries[0].is_work or not self.entries[0].ready():
            return False
        self.entries.popleft().run()
        return True

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.called("wait_event", self.name, event.name)
        captured = event.captured
        self.put(lambda: None, lambda: event.completed >= captured, is_work=False)

    def query(self) -> bool:
        self.cuda.called("stream_query", self.name)
        return not self.entries

    def synchronize(self) -> None:
        self.cuda.called("synchronize", self.name)
        while self.entries:
            self.cuda.run()


class FakeEvent:
    def __init__(self, cuda: FakeCuda, *, enable_timing: bool) -> None:
        self.cuda = cuda
        self.timing = enable_timing
        self.name = f"event {len(cuda.events)}"
        self.captured = self.completed = 0
        cuda.events.append(self)

    def record(self, stream: FakeStream) -> None:
        self.cuda.called("record", stream.name, self.name)
        self.captured += 1
        captured = self.captured
        stream.put(lambda: self._complete(captured), is_work=False)

    def _complete(self, captured: int) -> None:
        self.completed = captured

    def query(self) -> bool:
        self.cuda.called("query", self.name)
        return self.completed == self.captured

    def elapsed_time(self, end: FakeEvent) -> float:
        self.cuda.called("elapsed_time", self.name, end.name)
        assert self.timing, "both events measure time"
        assert end.timing, "both events measure time"
        assert self.captured, "both events were recorded"
        assert self.completed == self.captured, "both events are complete"
        return 2.5


class FakeCuda:
    """One device. `calls` has what was called with which names; `fail` makes a call raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.streams: list[FakeStream] = []
        self.events: list[FakeEvent] = []
        self.compute = FakeStream(self, "compute", 0)
        self._failing: dict[tuple[str, ...], str] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the device where `tiers/device/cuda.py` looks for one."""
        monkeypatch.setattr(torch.cuda, "Stream", self._stream)
        monkeypatch.setattr(
            torch.cuda, "Event", lambda enable_timing=False: FakeEvent(self, enable_timing=enable_timing)
        )
        monkeypatch.setattr(torch.cuda, "device", self._device)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.compute)

    def fail(self, *call: str, message: str) -> None:
        """Let every call fail from now on whose name and first arguments are these."""
        self._failing[call] = message

    def heal(self) -> None:
        self._failing.clear()

    def called(self, *call: str) -> None:
        self.calls.append(call)
        for beginning, message in self._failing.items():
            if call[: len(beginning)] == beginning:
                raise RuntimeError(message)

    def stream(self, handle: int) -> FakeStream:
        return next(stream for stream in self.streams if stream.cuda_stream == handle)

    def run(self) -> None:
        """Let a stream make a step; one of them can."""
        assert any(stream.step() for stream in self.streams), "the streams wait for each other"

    def drain(self) -> None:
        while any(stream.entries for stream in self.streams):
            self.run()

    def settle(self) -> None:
        """Let everything happen that is not work."""
        while any(stream.settle() for stream in self.streams):
            pass

    def _stream(self, device: torch.device, priority: int) -> FakeStream:
        return FakeStream(self, f"stream {len(self.streams)}", priority)

    @contextlib.contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        self.called("device", str(device))
        yield


class FakeDriver:
    """libcuda: its entry points, as ctypes finds and calls them.

    Attributes:
        batched: whether it knows cuMemcpyBatchAsync.
        fails_at: the run at which a copy returns an error.
    """

    def __init__(self, cuda: FakeCuda, *, batched: bool = True) -> None:
        self.cuda = cuda
        self.batched = batched
        self.fails_at: int | None = None
        self.asked: list[tuple[bytes, int]] = []  # entry points, and the versions of CUDA they are of
        self._singles = 0
        pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        self._batch = ctypes.CFUNCTYPE(
            integer, pointer, pointer, pointer, size, pointer, pointer, size, pointer, pointer
        )(self._copy_batch)
        self.cuMemcpyAsync = ctypes.CFUNCTYPE(integer, pointer, pointer, size, pointer)(self._copy_one)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ctypes, "CDLL", self._library)

    def _library(self, name: str) -> FakeDriver:
        if name != "libcuda.so.1":
            raise OSError(f"{name}: no such library")
        return self

    def cuGetProcAddress_v2(self, symbol: bytes, found: Any, version: int, flags: Any, status: Any) -> int:
        self.asked.append((symbol, version))
        if self.batched:
            found._obj.value = ctypes.cast(self._batch, ctypes.c_void_p).value
        return 0

    def _copy_batch(
        self,
        targets: int,
        sources: int,
        sizes: int,
        count: int,
        attributes: int,
        first: int,
        attribute_count: int,
        failed_at: int,
        stream: int,
    ) -> int:
        self.cuda.called("batch", self.cuda.stream(stream).name, str(count))
        columns = [(ctypes.c_int64 * count).from_address(column) for column in (targets, sources, sizes)]
        for run, (target, source, size) in enumerate(zip(*columns, strict=True)):
            if run == self.fails_at:
                ctypes.c_size_t.from_address(failed_at).value = run
                return 1
            self._put(target, source, size, stream)
        return 0

    def _copy_one(self, target: int, source: int, size: int, stream: int) -> int:
        self.cuda.called("copy", self.cuda.stream(stream).name, str(size))
        if self._singles == self.fails_at:
            return 1
        self._singles += 1
        self._put(target, source, size, stream)
        return 0

    def _put(self, target: int, source: int, size: int, stream: int) -> None:
        self.cuda.stream(stream).put(partial(ctypes.memmove, target, source, size))
