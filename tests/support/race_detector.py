"""A race detector for the gpu tier: who may touch which bytes, and who did so too early.

Every access is announced: kernels on the test's compute stream, copies of the tier, and what the test itself
reads or writes on the host. An access is under way from the moment it is submitted until it has ended and
whoever submitted it could know. Two accesses conflict if they share bytes and one of them writes. Races are

- an access that conflicts with one under way, unless the tier promises their order: kernels run in order,
  jobs of one lane run in order, and a job runs after the kernels before its mark;
- an access that begins before a conflicting one that was submitted earlier has ended, whatever was promised;
- a job that ends before an earlier one of its lane.

So it finds most races where they are made, whichever way the threads happened to run.

`SteppedCopies` are copies that announce themselves: those of plain memory, on their own threads, but one run
at a time and only when the test lets them, with faults where the test wants them.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable

from kvtier.tiers.device.copies import CopyJob, Lane, Mark
from kvtier.tiers.device.copyplan import CopyPlan
from kvtier.tiers.device.gpu import CpuCopies

COMPUTE = "compute"
STEP_WAIT_S = 10.0  # a thread that was let go has moved by then, or hangs

Ranges = tuple[tuple[int, int], ...]  # first address, address after the last


def not_yet() -> bool:
    return False


class Access:
    """Bytes that are read or written on a queue, from submission to end."""

    def __init__(
        self, what: str, queue: str, *, reads: Iterable[tuple[int, int]], writes: Iterable[tuple[int, int]]
    ) -> None:
        self.what = what
        self.queue = queue
        self.reads: Ranges = tuple(reads)
        self.writes: Ranges = tuple(writes)
        self.kernel = 0  # how many kernels had been launched before, for a kernel
        self.after = 0  # how many kernels it runs after, for a copy
        self.ended = False
        self.done: Callable[[], bool] = not_yet  # whether its submitter could know

    def conflicts(self, other: Access) -> bool:
        return (
            _overlap(self.writes, other.writes)
            or _overlap(self.writes, other.reads)
            or _overlap(self.reads, other.writes)
        )


class RaceDetector:
    """Accesses under way, and the races among them. Thread-safe."""

    def __init__(self) -> None:
        self.kernels = 0  # launched so far
        self.races: list[str] = []
        self._under_way: list[Access] = []  # in the order of submission
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def launch(self, *, reads: Ranges = (), writes: Ranges = ()) -> Access:
        """A kernel is put on the compute stream."""
        with self._lock:
            self.kernels += 1
            access = Access(f"kernel {self.kernels}", COMPUTE, reads=reads, writes=writes)
            access.kernel = self.kernels
            access.done = lambda: True  # a job that comes after it need not be told
            self._submit(access)
            return access

    def submit(self, plan: CopyPlan, lane: Lane, after: int) -> Access:
        """A copy is put on a lane, to run after the first `after` kernels."""
        with self._lock:
            device, host = _ranges(plan.device, plan.sizes), _ranges(plan.host, plan.sizes)
            reads, writes = (device, host) if lane is Lane.STORE else (host, device)
            access = Access(f"{lane.value} {next(self._numbers)}", lane.value, reads=reads, writes=writes)
            access.after = after
            self._submit(access)
            return access

    def host(self, *, reads: Ranges = (), writes: Ranges = ()) -> None:
        """The test touches memory itself, now."""
        with self._lock:
            access = Access("the host", "host", reads=reads, writes=writes)
            self._race(access, self._others(access), "touches what is under way:")

    def begin(self, access: Access) -> None:
        with self._lock:
            earlier = itertools.takewhile(lambda other: other is not access, self._under_way)
            self._race(access, [other for other in earlier if not other.ended], "begins before the end of")

    def end(self, access: Access) -> None:
        with self._lock:
            for other in itertools.takewhile(lambda other: other is not access, self._under_way):
                if other.queue == access.queue and not other.ended:
                    self.races.append(f"{access.what} ends before {other.what} of the same lane")
            access.ended = True

    def check(self) -> None:
        """Fail at the first sight of a race."""
        assert not self.races, "; ".join(self.races)

    def _submit(self, access: Access) -> None:
        unordered = [other for other in self._others(access) if not _ordered(other, access)]
        self._race(access, unordered, "is submitted, in no order with")
        self._under_way.append(access)

    def _others(self, access: Access) -> list[Access]:
        self._under_way = [other for other in self._under_way if not (other.ended and other.done())]
        return [other for other in self._under_way if other is not access]

    def _race(self, access: Access, others: Iterable[Access], how: str) -> None:
        self.races += [f"{access.what} {how} {other.what}" for other in others if access.conflicts(other)]


def _ordered(earlier: Access, later: Access) -> bool:
    """Whether the tier promises that the later one runs after the earlier one."""
    if earlier.queue == COMPUTE and later.queue != COMPUTE:
        return earlier.kernel <= later.after
    return earlier.queue == later.queue


def _ranges(addresses: Iterable[int], sizes: Iterable[int]) -> Ranges:
    return tuple(
        (int(address), int(address) + int(size)) for address, size in zip(addresses, sizes, strict=True)
    )


def _overlap(some: Ranges, others: Ranges) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


class SteppedCopies(CpuCopies):
    """The copies of plain memory, on their threads, with a compute stream beside them; all move by steps.

    Attributes:
        fails_at: the run before which the next job fails.
    """

    def __init__(self, detector: RaceDetector) -> None:
        super().__init__()
        self.detector = detector
        self.fails_at: int | None = None
        self._kernels: deque[tuple[Access, Callable[[], None]]] = deque()
        self._submitted: dict[int, tuple[Access, int | None]] = {}  # by the plan's id
        self._jobs: list[tuple[Access, CopyJob]] = []
        # What follows is guarded by the condition.
        self._moved = threading.Condition()
        self._kernels_run = 0
        self._turns = dict.fromkeys(Lane, 0)  # runs that a lane may copy now
        self._copying = dict.fromkeys(Lane, 0)  # jobs of a lane that have not ended
        self._waiting: set[Lane] = set()  # lanes whose thread can do nothing more
        self._free = False  # whether everything may run to its end

    def launch(self, work: Callable[[], None], *, reads: Ranges = (), writes: Ranges = ()) -> None:
        """Put a kernel on the compute stream."""
        self._kernels.append((self.detector.launch(reads=reads, writes=writes), work))

    def run_kernel(self) -> None:
        """Run the oldest kernel, if there is one."""
        if self._kernels:
            access, work = self._kernels.popleft()
            self.detector.begin(access)
            work()
            self.detector.end(access)
            self._let(lambda: None, kernels=1)

    def step(self, lane: Lane) -> None:
        """Let a lane copy one run, or fail in its place."""
        self._let(lambda: self._turns.__setitem__(lane, 1))

    def free(self) -> None:
        """Run everything to its end, now and from now on."""
        while self._kernels:
            self.run_kernel()
        self._let(lambda: setattr(self, "_free", True))

    def mark(self) -> Mark:
        return self.detector.kernels

    def submit(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        access = self.detector.submit(plan, lane, after)
        self._submitted[id(plan)] = access, self.fails_at
        self.fails_at = None
        with self._moved:
            self._copying[lane] += 1
        job = self.started(plan, lane, after)
        access.done = job.done
        self._jobs.append((access, job))
        self._settle()
        return job

    def started(self, plan: CopyPlan, lane: Lane, after: Mark) -> CopyJob:
        """Give the copy to its lane's thread; tests break rules here."""
        return super().submit(plan, lane, after)

    def copy(self, plan: CopyPlan, lane: Lane) -> float:
        access, fails_at = self._submitted.pop(id(plan))
        try:
            self._wait(lane, lambda: self.may_begin(access))
            self.detector.begin(access)
            for run in range(len(plan.sizes)):
                self._wait(lane, lambda: self._free or self._turns[lane] > 0)
                if run == fails_at:
                    raise RuntimeError("injected fault")
                one = slice(run, run + 1)
                super().copy(CopyPlan(plan.device[one], plan.host[one], plan.sizes[one], 0), lane)
            return 0.0
        finally:
            self.detector.end(access)
            with self._moved:
                self._copying[lane] -= 1
                self._moved.notify_all()

    def may_begin(self, access: Access) -> bool:
        """Whether the kernels have run that the copy comes after."""
        return self._kernels_run >= access.after

    def close(self) -> None:
        self.free()
        super().close()

    def _wait(self, lane: Lane, ready: Callable[[], bool]) -> None:
        with self._moved:
            while not ready():
                self._waiting.add(lane)
                self._moved.notify_all()
                self._moved.wait()
            self._waiting.discard(lane)
            self._turns[lane] = 0

    def _let(self, change: Callable[[], None], *, kernels: int = 0) -> None:
        with self._moved:
            change()
            self._kernels_run += kernels
            self._waiting.clear()  # whoever still cannot go on says so again
            self._moved.notify_all()
        self._settle()

    def _settle(self) -> None:
        """Return once every thread waits for the test or has nothing to do, and every end can be seen."""
        with self._moved:
            settled = self._moved.wait_for(
                lambda: all(not self._copying[lane] or lane in self._waiting for lane in Lane), STEP_WAIT_S
            )
        assert settled, "a lane hangs"
        for access, job in self._jobs:
            assert not access.ended or job.wait(STEP_WAIT_S)
        self._jobs = [(access, job) for access, job in self._jobs if not access.ended]
