import itertools
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.tiers.pinned.eviction import POLICIES, Evictable, LruPolicy, PromptId
from kvtier.tiers.pinned.slots import Slot, SlotState, SlotTable

PROMPTS = itertools.count()


def reserve(slots: SlotTable, keys: Sequence[bytes]) -> tuple[list[Slot], list[bytes]]:
    """Take slots for a prompt that consists of these chunks."""
    return slots.reserve(next(PROMPTS), keys, range(len(keys)))


def table(slots_count: int) -> SlotTable:
    return SlotTable(slots_count, POLICIES["lru"](slots_count))


def test_a_reserved_chunk_is_not_readable_before_commit() -> None:
    slots = table(2)
    (slot,), _ = reserve(slots, [b"a"])
    assert not slots.is_ready(b"a")
    slots.commit([slot])
    assert slots.is_ready(b"a")


def test_what_is_pinned_is_not_evicted() -> None:
    slots = table(2)
    filled, _ = reserve(slots, [b"a", b"b"])
    slots.commit(filled)
    slots.pin([filled[0]])
    (new,), evicted = reserve(slots, [b"c"])
    assert evicted == [b"b"]
    assert new.index == filled[1].index


def test_nobody_looks_for_victims_where_everything_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = table(2)
    filled, _ = reserve(slots, [b"a", b"b"])
    slots.commit(filled)
    slots.pin(filled)
    monkeypatch.setattr(slots, "_is_idle", None)  # not even one is asked about: there may be a million
    assert reserve(slots, [b"c"]) == ([], [])


def test_a_full_table_gives_slots_to_the_leading_keys_only() -> None:
    slots = table(2)
    reserved, evicted = reserve(slots, [b"a", b"b", b"c"])
    assert [slot.key for slot in reserved] == [b"a", b"b"]
    assert evicted == []


def test_a_dropped_slot_is_not_reused_while_somebody_uses_it() -> None:
    slots = table(1)
    (slot,), _ = reserve(slots, [b"a"])
    slots.commit([slot])
    slots.pin([slot])
    slots.drop([slot])
    assert slots.get(b"a") is None
    assert reserve(slots, [b"b"]) == ([], [])
    slots.unpin([slot])
    (again,), _ = reserve(slots, [b"b"])
    assert again.index == slot.index


def test_a_chunk_dropped_while_it_is_filled_never_becomes_readable() -> None:
    slots = table(1)
    (slot,), _ = reserve(slots, [b"a"])
    slots.drop([slot])
    slots.commit([slot])
    assert not slots.is_ready(b"a")
    assert slots.free_count == 1


def test_an_illegal_step_is_refused() -> None:
    slots = table(1)
    (slot,), _ = reserve(slots, [b"a"])
    slots.commit([slot])
    slots.drop([slot])
    with pytest.raises(AssertionError, match="cannot be pinned"):
        slots.pin([slot])


class Recorder(LruPolicy):
    """Remembers what it is told of prompts."""

    def __init__(self, capacity_chunks: int) -> None:
        super().__init__(capacity_chunks)
        self.told: list[object] = []

    def arrive(self, prompt: PromptId) -> None:
        self.told.append(("arrive", prompt))

    def insert(self, prompt: PromptId, keys: Sequence[bytes], positions: Sequence[int]) -> None:
        super().insert(prompt, keys, positions)
        self.told.append(("insert", prompt, list(keys), list(positions)))

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[bytes]:
        self.told.append(("spare", spare))
        return super().evict(count, evictable, spare=spare)


def test_a_policy_hears_of_prompts_in_the_order_of_allocation_and_of_each_ones_chunks_together() -> None:
    policy = Recorder(3)
    slots = SlotTable(3, policy)
    (a0,), _ = slots.reserve(7, [b"a0"], [0])
    (b5,), _ = slots.reserve(8, [b"b5"], [5])
    (a1,), _ = slots.reserve(7, [b"a1"], [1])
    slots.commit([b5, a0, a1])
    slots.reserve(7, [b"a2"], [2])
    assert policy.told == [
        ("arrive", 7),
        ("arrive", 8),
        ("arrive", 7),
        ("insert", 8, [b"b5"], [5]),
        ("insert", 7, [b"a0", b"a1"], [0, 1]),
        ("spare", 7),
        ("arrive", 7),
    ]


every_policy = pytest.mark.parametrize("policy", sorted(POLICIES))


@every_policy
def test_a_store_never_evicts_what_its_prompt_holds(policy: str) -> None:
    slots = SlotTable(8, POLICIES[policy](8))
    prefix, others = [b"p%d" % i for i in range(4)], [b"o%d" % i for i in range(4)]
    for keys in (prefix, others):
        slots.commit(reserve(slots, keys)[0])
    prompt = next(PROMPTS)
    slots.touch(prompt, prefix, range(4))
    taken, evicted = slots.reserve(prompt, [b"n%d" % i for i in range(6)], range(4, 10))
    assert [slot.key for slot in taken] == [b"n0", b"n1", b"n2", b"n3"], "as many as others gave up"
    assert evicted == others[::-1]


@every_policy
def test_the_room_of_a_prompt_is_what_a_reserve_then_finds(policy: str) -> None:
    for own, other, pinned, wanted in itertools.product(range(4), range(4), range(3), range(9)):
        slots = SlotTable(6, POLICIES[policy](6))
        prompt = next(PROMPTS)
        mine, _ = slots.reserve(prompt, [b"m%d" % i for i in range(own)], range(own))
        theirs, _ = reserve(slots, [b"t%d" % i for i in range(other)])
        slots.commit([*mine, *theirs])
        slots.pin([*mine[:1], *theirs[:pinned]])
        room = slots.room(prompt, wanted)
        slots.check()
        assert len(slots) == own + other, "to ask evicts nothing"
        taken, evicted = slots.reserve(prompt, [b"n%d" % i for i in range(wanted)], range(own, own + wanted))
        assert room == len(taken)
        assert not {slot.key for slot in mine}.intersection(evicted)


def test_where_there_is_room_the_line_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = table(6)
    prompt = next(PROMPTS)
    slots.commit(slots.reserve(prompt, [b"a", b"b"], [0, 1])[0])
    slots.commit(reserve(slots, [b"c", b"d", b"e", b"f"])[0])
    monkeypatch.setattr(slots, "_is_idle", None)
    assert slots.room(prompt, 4) == 4


KEYS = [b"%d" % i for i in range(8)]


class SlotModel(RuleBasedStateMachine):
    """Fillers and readers come and go in any order; readable is what was committed and not dropped."""

    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotTable(4, POLICIES[self.policy](4))
        self.filling: list[Slot] = []
        self.reading: list[Slot] = []

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    def reserve(self, keys: list[bytes]) -> None:
        new = [key for key in keys if self.slots.get(key) is None]
        reserved, _ = reserve(self.slots, new)
        assert [slot.key for slot in reserved] == new[: len(reserved)]
        self.filling += reserved

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), good=st.booleans())
    def end_filling(self, data: st.DataObject, good: bool) -> None:
        slot = self.filling.pop(data.draw(st.integers(0, len(self.filling) - 1)))
        was_gone = slot.state is SlotState.GONE
        if good:
            self.slots.commit([slot])
        else:
            self.slots.drop([slot])
            self.slots.unpin([slot])
        assert (self.slots.get(slot.key) is slot) == (good and not was_gone)

    @rule(key=st.sampled_from(KEYS))
    def read(self, key: bytes) -> None:
        slot = self.slots.get(key)
        if slot is not None and slot.state is SlotState.READY:
            self.slots.pin([slot])
            self.slots.touch(next(PROMPTS), [key], [0])
            self.reading.append(slot)

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def end_reading(self, data: st.DataObject) -> None:
        self.slots.unpin([self.reading.pop(data.draw(st.integers(0, len(self.reading) - 1)))])

    @rule(key=st.sampled_from(KEYS))
    def drop(self, key: bytes) -> None:
        slot = self.slots.get(key)
        if slot is not None:
            self.slots.drop([slot])

    @rule()
    def drop_all(self) -> None:
        self.slots.drop_all()
        assert len(self.slots) == 0

    @invariant()
    def a_used_slot_belongs_to_one_chunk(self) -> None:
        self.slots.check()
        used = {slot.index: slot for slot in (*self.filling, *self.reading)}
        assert all(used[slot.index] is slot for slot in (*self.filling, *self.reading))


TestSlotModel = SlotModel.TestCase
TestSlotModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
