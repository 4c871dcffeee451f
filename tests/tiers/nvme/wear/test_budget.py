"""The bucket: what it saves, what it owes, and what is kept for stores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.nvme.wear.budget import SAVED_MS, DailyBudget, NoBudget
from kvtier.tiers.nvme.wear.record import DAY_MS, Wear

SAVED = 3600  # bytes in an hour: one a second
BYTES_A_DAY = SAVED * DAY_MS / SAVED_MS


class Rig:
    """A budget over numbers that are noted when the test says so."""

    def __init__(self) -> None:
        self.wear, self.now_ms = Wear(), 0
        self.budget = DailyBudget(BYTES_A_DAY, lambda: self.wear, lambda: self.now_ms)

    def written(self, size_bytes: int) -> None:
        self.wear = self.wear._replace(written_bytes=self.wear.written_bytes + size_bytes)

    def noted(self) -> None:
        self.wear = self.wear.noted(self.now_ms, 0, self.budget.debt_bytes(self.wear, self.now_ms))


def test_it_starts_full_and_holds_an_hour() -> None:
    rig = Rig()
    assert rig.budget.left_bytes() == SAVED
    rig.now_ms = 100 * SAVED_MS
    assert rig.budget.left_bytes() == SAVED
    rig.noted()
    assert rig.budget.left_bytes() == SAVED


def test_what_was_written_too_much_comes_off_what_follows() -> None:
    rig = Rig()
    rig.written(SAVED + 600)
    rig.noted()
    assert rig.budget.left_bytes() == -600
    rig.now_ms += 600_000
    assert rig.budget.left_bytes() == 0
    rig.now_ms += 1_800_000
    assert rig.budget.left_bytes() == SAVED // 2


def test_what_is_on_its_way_is_spent_once() -> None:
    rig = Rig()
    with rig.budget.spending(1000):
        assert rig.budget.left_bytes() == SAVED - 1000
    rig.written(1000)
    assert rig.budget.left_bytes() == SAVED - 1000


def test_carrying_stops_before_stores_do() -> None:
    rig = Rig()
    rig.written(SAVED - SAVED // 8)
    assert rig.budget.spare_bytes() == 0
    assert rig.budget.left_bytes() == SAVED // 8


def test_a_restart_of_process_or_machine_pays_back_what_has_passed_at_least() -> None:
    rig = Rig()
    rig.now_ms = 50 * SAVED_MS
    rig.written(SAVED)
    rig.noted()
    rig.now_ms += 1_200_000  # closed, and opened again
    assert rig.budget.left_bytes() == 1200
    rig.now_ms = 600_000  # ten minutes after the machine was started again
    assert rig.budget.left_bytes() == 600


def test_without_a_budget_all_may_be_written() -> None:
    budget, wear = NoBudget(), Wear(written_bytes=1 << 60)
    assert budget.left_bytes() == budget.spare_bytes() > 1 << 60
    with budget.spending(1 << 60):
        assert budget.debt_bytes(wear, 0) == 0


@given(st.lists(st.tuples(st.integers(0, 7200), st.integers(0, 5000), st.booleans()), max_size=50))
def test_over_any_time_no_more_is_allowed_than_was_saved_and_came_in(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Whenever it is noted: at most an hour's worth, the income, and what the last write took too much."""
    rig, allowed, largest = Rig(), 0, 0
    for seconds, size_bytes, is_noted in steps:
        rig.now_ms += seconds * 1000
        if rig.budget.left_bytes() > 0:
            rig.written(size_bytes)
            allowed, largest = allowed + size_bytes, max(largest, size_bytes)
        if is_noted:
            rig.noted()
        assert allowed <= SAVED + rig.now_ms // 1000 + largest + len(steps)
