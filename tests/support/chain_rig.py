"""A chain of slots over a memory tier, with the clock and the tier's speed in the test's hand."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from kvtier.engine.events import EventLog
from kvtier.engine.library import LibraryChain
from kvtier.engine.loop import LoopThread
from kvtier.engine.server import ServerChain
from kvtier.tiers.base import Buffer, Failure
from kvtier.tiers.pinned.eviction import POLICIES
from kvtier.tiers.pinned.slots import Slot, SlotTable
from kvtier.tiers.testing import MemoryTier, pattern

SLOT_BYTES = 64


class Slots:
    """A pinned tier without an arena."""

    name = "pinned"
    slot_bytes = SLOT_BYTES

    def __init__(self, slots_count: int) -> None:
        self.table = SlotTable(slots_count, POLICIES["lru"](slots_count))
        self.memory = [memoryview(bytearray(SLOT_BYTES)) for _ in range(slots_count)]

    def buffer(self, slot: Slot) -> Buffer:
        return self.memory[slot.index]


class CountingTier(MemoryTier):
    """Remembers what it is told of uses in other tiers."""

    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.told: list[bytes] = []

    def used(self, keys: Sequence[bytes]) -> None:
        self.told += keys


class BothFaces(LibraryChain, ServerChain):
    """A chain whose test acts as a server and waits as the library does."""

    dirty_fraction = ServerChain.dirty_fraction


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Rig:
    """A chain of `slots_count` slots over a memory tier."""

    def __init__(self, slots_count: int) -> None:
        self.loop = LoopThread()
        self.pinned = Slots(slots_count)
        self.lower = CountingTier()
        self.clock = Clock()
        self.events = EventLog()
        self.chain = BothFaces(
            self.pinned,
            [self.lower],
            self.loop,
            load_deadlines_s={"memory": 5.0},
            events=self.events,
            clock=self.clock,
        )

    def put(self, keys: Sequence[bytes]) -> list[Slot]:
        """Store chunks as a server does."""
        slots = self.chain.reserve(self.chain.new_prompt(), keys).slots
        for slot in slots:
            self.pinned.buffer(slot)[:] = pattern(slot.key, SLOT_BYTES)
        self.chain.commit(slots)
        return slots

    def drain(self) -> None:
        self.loop.submit(self.chain.mover.drain()).result(5)

    def fetch(self, keys: Sequence[bytes]) -> Future[tuple[list[Slot], dict[bytes, Failure]]]:
        return self.loop.submit(self.chain.fetch(self.chain.new_prompt(), keys))

    def gate(self, opened: bool) -> None:
        switch = self.lower.gate.set if opened else self.lower.gate.clear
        self.loop.submit(_call(switch)).result(5)


async def _call(function: object) -> None:
    assert callable(function)
    function()


def rigged(slots_count: int) -> Iterator[Rig]:
    rig = Rig(slots_count)
    yield rig
    rig.gate(opened=True)
    rig.loop.submit(rig.chain.mover.stop()).result(5)
    rig.chain.check()
    rig.loop.close()
