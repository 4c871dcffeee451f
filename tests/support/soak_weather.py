"""Weather for a soak: what goes wrong in which second, and a layer of files and a clock that follow it.

A kind of fault lasts for a period, and hits some of the calls made meanwhile. Which kind comes when follows
from a seed, so that a run can be had again, as far as threads and kills allow.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from kvtier.tiers.base import Buffer
from kvtier.tiers.nvme.io import clock
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files

PERIOD_S = 0.7
HANG_MAX_S = 2 * PERIOD_S  # beyond the load deadline of a soak's tiers
SLOW_S = 0.02
FREE_BYTES = 1024 * 1024  # of a file system that somebody else has filled

OFTEN, ALWAYS = 0.3, 1.0


class Fault(NamedTuple):
    """One kind of fault.

    Attributes:
        call: the method of the files that it hits; "" for none.
        what: an errno, "slow", "hang", "flip" or "short"; for no call: "full" or "clock".
        odds: with which it hits a call.
        loses: whether chunks that were flushed may be gone because of it.
    """

    call: str
    what: int | str
    odds: float
    loses: bool = False

    @property
    def name(self) -> str:
        what = errno.errorcode[self.what] if isinstance(self.what, int) else self.what
        return f"{self.call} {what}".strip()


FAULTS = (
    *(Fault(call, "slow", OFTEN) for call in ("pwritev", "preadv", "sync_data")),
    *(Fault(call, "hang", OFTEN) for call in ("pwritev", "preadv", "sync_data", "open_data")),
    *(Fault("pwritev", code, OFTEN) for code in (errno.EIO, errno.EROFS, errno.ENOMEM)),
    *(Fault("pwritev", code, ALWAYS) for code in (errno.EIO, errno.ETIMEDOUT)),
    *(Fault("preadv", code, OFTEN) for code in (errno.ENOMEM, errno.EMFILE)),
    *(Fault("allocate", code, OFTEN) for code in (errno.EIO, errno.EINTR)),
    *(Fault("open_data", code, OFTEN) for code in (errno.EMFILE, errno.ENFILE)),
    Fault("write_small", errno.EIO, OFTEN),
    Fault("sync_data", errno.EIO, OFTEN),
    Fault("sync_data", errno.EIO, ALWAYS),
    Fault("pwritev", "short", OFTEN),
    Fault("", "clock", ALWAYS),
    Fault("preadv", errno.EIO, OFTEN, loses=True),
    Fault("preadv", "flip", 0.05, loses=True),
    Fault("pwritev", errno.ENOSPC, ALWAYS, loses=True),
    Fault("allocate", errno.ENOSPC, ALWAYS, loses=True),
    Fault("", "full", ALWAYS, loses=True),
)


class Weather:
    """What goes wrong now. Any thread.

    Attributes:
        calm: while it is set, nothing goes wrong.
        seen: how often each kind has hit a call.
    """

    def __init__(self, seed: int, *, may_lose: bool) -> None:
        self._seed = seed
        self._faults = [fault for fault in FAULTS if may_lose or not fault.loses]
        self._began_s = time.monotonic()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.calm = threading.Event()
        self.seen: Counter[str] = Counter()

    def now(self) -> Fault | None:
        """The fault of this period; half of them have none."""
        if self.calm.is_set():
            return None
        period = int((time.monotonic() - self._began_s) / PERIOD_S)
        chance = random.Random(f"{self._seed} {period}")
        return chance.choice(self._faults) if chance.random() < 0.5 else None

    def strikes(self, call: str) -> Fault | None:
        """The fault that hits this call of the files, if one does."""
        fault = self.now()
        if fault is None or fault.call != call:
            return None
        with self._lock:
            if self._random.random() >= fault.odds:
                return None
            self.seen[fault.name] += 1
        return fault

    def has(self, what: str) -> bool:
        """Whether it is the time of a fault that hits no single call."""
        fault = self.now()
        found = fault is not None and not fault.call and fault.what == what
        if found:
            with self._lock:
                self.seen[what] += 1
        return found

    def position(self, size: int) -> int:
        """Any position below `size`."""
        with self._lock:
            return self._random.randrange(size)

    def hang(self) -> None:
        """Wait as a drive does that does not answer; a calm ends it."""
        self.calm.wait(HANG_MAX_S)


class StormyFiles(Files):
    """The real files, in the weather."""

    def __init__(self, weather: Weather) -> None:
        self._weather = weather

    def open_data(self, path: Path, *, create: bool = False, write: bool = False) -> int:
        self._pass("open_data")
        return super().open_data(path, create=create, write=write)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._pass("allocate")
        super().allocate(fd, size_bytes)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self._pass("pwritev") == "short" and len(buffers) > 1:
            buffers = buffers[: len(buffers) // 2]
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        flips = self._pass("preadv") == "flip"
        read = super().preadv(fd, buffers, offset)
        if flips and len(buffers[0]) > BLOCK_BYTES:  # of chunks: what a table has lost so is in no trailer
            buffers[0][self._weather.position(len(buffers[0]))] ^= 1
        return read

    def sync_data(self, fd: int) -> None:
        self._pass("sync_data")
        super().sync_data(fd)

    def write_small(self, path: Path, data: bytes) -> None:
        self._pass("write_small")
        super().write_small(path, data)

    def free_bytes(self, path: Path) -> int:
        free_bytes = super().free_bytes(path)
        return min(free_bytes, FREE_BYTES) if self._weather.has("full") else free_bytes

    def _pass(self, call: str) -> str:
        """Let the weather have its way with a call; returns what is left to do to it."""
        fault = self._weather.strikes(call)
        if fault is None:
            return ""
        if isinstance(fault.what, int):
            raise OSError(fault.what, os.strerror(fault.what))
        if fault.what == "slow":
            time.sleep(SLOW_S)
        elif fault.what == "hang":
            self._weather.hang()
        return fault.what


def set_clock_by(weather: Weather) -> None:
    """Have the clock that a store writes down follow the weather, too: now and then it is a day off."""

    def now_s() -> float:
        off_s = 86400 * (1 - 2 * weather.position(2)) if weather.has("clock") else 0
        return time.time() + off_s

    vars(clock)["time"] = SimpleNamespace(time=now_s)  # this process is a soak's own
